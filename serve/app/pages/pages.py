"""Routes of the pages and of what they load. Nothing here knows a patient: all data come through the API.

A page is the same for everybody; who is logged in is asked by its script, so that it may be kept by the phone.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
LANGUAGES = ("pt", "en")
PAGES = {"/": "nurse", "/collect": "collect", "/engineer": "engineer"}
SENTENCES = ("frase", "parlenda", "sustentada", "aceite")  # what collection knows, see collect/facts.py
LANGUAGE_COOKIE = "spira_lang"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@cache
def strings() -> dict[str, dict[str, Any]]:
    """Every sentence of the pages: {language: {area: {key: sentence}}}."""
    return {language: json.loads((HERE / f"{language}.json").read_text()) for language in LANGUAGES}


@cache
def static() -> dict[str, tuple[bytes, bytes, str, str]]:
    """Each file: (bytes, the same gzipped, ETag, media type). A few dozen kilobytes, read once."""
    found = {}
    for file in sorted((HERE / "static").iterdir()):
        content = file.read_bytes()
        packed = gzip.compress(content, mtime=0)
        found[file.name] = content, packed, hashlib.sha256(content).hexdigest()[:16], _KINDS[file.suffix]
    return found


@cache
def build() -> str:
    """What the addresses of static files carry; another one as soon as any file or sentence is another."""
    parts = [etag for _, _, etag, _ in static().values()]
    parts += [file.read_text() for file in sorted((HERE / "templates").iterdir())] + [json.dumps(strings())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def choose(asked: str | None, stored: str | None, accepted: str) -> str:
    """The language: asked for in the address, else chosen before, else the browser's first that we speak, else pt."""
    for choice in (asked, stored):
        if choice in LANGUAGES:
            return str(choice)
    wished = []
    for place, part in enumerate(accepted.split(",")):
        tag, _, weight = part.strip().partition(";q=")
        try:
            wished.append((-float(weight or 1), place, tag[:2].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(wished) if tag in LANGUAGES), "pt")


def router(settings: object = None) -> APIRouter:
    """`/`, `/collect`, `/engineer`, `/sw.js` and `/static/<build>/<file>`; settings: of the app, not needed yet."""
    routes = APIRouter(include_in_schema=False)
    templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    templates.trim_blocks = templates.lstrip_blocks = True

    def page(request: Request) -> Response:
        asked = request.query_params.get("lang")
        language = choose(asked, request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", ""))
        name = PAGES[request.url.path]
        facts = {"name": name, "language": language, "build": build(), "t": strings()[language], "sentences": SENTENCES}
        text = templates.get_template(f"{name}.html").render(facts, path=request.url.path)
        etag = hashlib.sha256(text.encode()).hexdigest()[:16]
        headers = HEADERS | {
            "Cache-Control": "no-cache",
            "Vary": "Accept-Language, Cookie",
            "Content-Language": language,
        }
        answer = _fresh(request, etag, headers) or HTMLResponse(text, headers=headers | {"ETag": f'"{etag}"'})
        if asked == language:
            secure = request.url.scheme == "https"
            answer.set_cookie(LANGUAGE_COOKIE, language, max_age=31_536_000, samesite="lax", secure=secure)
        return answer

    for path in PAGES:
        routes.add_api_route(path, page, methods=["GET", "HEAD"])

    @routes.get("/static/{asked}/{name}")
    def file(asked: str, name: str, request: Request) -> Response:
        """For ever where the address has the build of now; a page from before an update asks again."""
        return _file(request, name, "public, max-age=31536000, immutable" if asked == build() else "no-cache")

    @routes.get("/sw.js")
    def worker(request: Request) -> Response:
        """At the root, since a service worker rules only what lies below it."""
        return _file(request, "sw.js", "no-cache")

    return routes


def _file(request: Request, name: str, caching: str) -> Response:
    if name not in static():
        return Response(status_code=404, headers=HEADERS)
    content, packed, etag, kind = static()[name]
    headers = HEADERS | {"Cache-Control": caching, "Vary": "Accept-Encoding"}
    if fresh := _fresh(request, etag, headers):
        return fresh
    headers["ETag"] = f'"{etag}"'
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, media_type=kind, headers=headers | {"Content-Encoding": "gzip"})
    return Response(content, media_type=kind, headers=headers)


def _fresh(request: Request, etag: str, headers: Mapping[str, str]) -> Response | None:
    """304 where the browser has it already. A proxy that packs may have made the ETag a weak one."""
    known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers=dict(headers) | {"ETag": f'"{etag}"'}) if f'"{etag}"' in known else None
