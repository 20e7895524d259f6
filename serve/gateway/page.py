"""The API's page at `/docs`, made from its OpenAPI description: plain HTML, since a page that asks another host for
scripts would not open in a closed network, and nothing of others should run where people paste their keys."""

from html import escape
from typing import Any

from fastapi.responses import HTMLResponse

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#25303b;max-width:50rem;margin:2rem auto;padding:0 1rem}
h2{border-top:1px solid #9aa5b1;padding-top:1rem}code,pre{background:#f4f6f8;padding:.1rem .3rem}pre{padding:.8rem;
overflow:auto}table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.2rem .8rem .2rem 0;border-bottom:1px solid #eaf2f6}"""
_EXAMPLE = """curl -H "Authorization: Bearer $KEY" -H "Content-Type: audio/wav" \\
     --data-binary @sentence.wav {base}/v1/predict"""
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def render(
    api: dict[str, Any],
    base: str,
    example: str = _EXAMPLE,
    models: tuple[str, ...] = ("Prediction", "Model", "Failure"),
) -> HTMLResponse:
    """api: the OpenAPI description. base: this server's address. models: of the answers, to be explained."""
    parts = [f"<h1>{escape(api['info']['title'])} {escape(api['info']['version'])}</h1>"]
    parts += [f"<p>{escape(text)}</p>" for text in api["info"]["description"].split("\n\n")]
    parts += [f"<pre>{escape(example.replace('{base}', base))}</pre>"]
    parts += ['<p>For programs: <a href="/openapi.json">openapi.json</a></p>']
    for path, methods in api["paths"].items():
        for method, call in methods.items():
            parts += _call(f"{method.upper()} {path}", call, api)
    for name in models:
        fields = api["components"]["schemas"][name]["properties"]
        parts += [f"<h2>{name}</h2>", _table({field: _type(facts) for field, facts in fields.items()})]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>SPIRA</title><style>{_STYLE}</style>{''.join(parts)}"
    )
    return HTMLResponse(page, headers=_HEADERS)


def _call(title: str, call: dict[str, Any], api: dict[str, Any]) -> list[str]:
    parts = [
        f"<h2><code>{title}</code></h2><p><b>{escape(call['summary'])}.</b> {escape(call.get('description', ''))}</p>"
    ]
    if parameters := call.get("parameters"):
        shown = {f"{one['name']} ({one['in']})": one.get("description", "") for one in parameters}
        parts += ["<h3>Parameters</h3>", _table(shown)]
    if body := call.get("requestBody"):
        parts += ["<h3>Body</h3>", _table({kind: _fields(one["schema"], api) for kind, one in body["content"].items()})]
    return [*parts, "<h3>Answers</h3>", _table({k: v["description"] for k, v in call["responses"].items()})]


def _fields(schema: dict[str, Any], api: dict[str, Any]) -> str:
    if "$ref" in schema:
        schema = api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    named = schema.get("properties", {})
    told = {name: facts.get("description") or _type(facts) for name, facts in named.items()}
    files = {name for name, facts in named.items() if facts.get("format") == "binary"}
    return ", ".join(f"{name}: {'the file' if name in files else text}" for name, text in told.items()) or "the file"


def _type(facts: dict[str, Any]) -> str:
    kind = " or ".join(facts["enum"]) if "enum" in facts else facts.get("type", "")
    return f"{kind} {facts.get('description', '')}".strip()


def _table(rows: dict[str, str]) -> str:
    return f"<table>{''.join(f'<tr><th><code>{escape(k)}</code><td>{escape(v)}' for k, v in rows.items())}</table>"
