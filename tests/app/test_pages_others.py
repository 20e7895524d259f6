"""Collector, engineer, accessibility of every state, languages, themes, and what the server sends."""

import re

import fake_app as fakes
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from phone import DESK, PICTURES

from serve.app.pages import pages

NEGATIVE = fakes.ANSWER | {"probability": 0.1, "calibrated": 0.06, "diagnosis": "negative"}
INCONCLUSIVE = fakes.ANSWER | {
    "calibrated": 0.52,
    "diagnosis": "inconclusive",
    "warnings": ["quiet", "unfamiliar_sound", "a_new_one"],
}


@pytest.mark.slow
def test_collecting_goes_wrong(phone, server, spoken):
    page = phone.open("/collect")
    page.check("[name=consent]")
    page.fill("#collect [name=subject]", "77001")
    page.fill("[name=site]", "someone@example.org")
    phone.choose(spoken[1])
    page.click("#collect > button.main")
    assert "dado pessoal" in phone.text("#collect-wrong")
    page.fill("[name=site]", "3")
    phone.context.set_offline(True)
    page.click("#collect > button.main")
    assert phone.text("#collect-wrong >> text=A gravação continua aqui")
    phone.context.set_offline(False)
    page.click("#collect > button.main")
    assert phone.text("#day-told >> text=Gravação guardada")
    assert len(server.recordings) == 1


@pytest.mark.slow
def test_engineer(phone, server):
    page = phone.open("/engineer")
    assert "88%" in phone.text("#live") and "poucos casos" in page.inner_text("#live")
    assert page.locator("#live .range").count() == 3
    assert "O modelo está fora do ar" in phone.text("#dead") and "418" in page.inner_text("#dead")
    page.click("#dead button >> nth=0")
    phone.until(lambda: len(server.dead) == 1, "the letter was not sent again")
    page.click("#dead button")
    assert phone.text("#dead >> text=Nenhum pedido parado")


@pytest.mark.slow
def test_roles(phone, server):
    server.roles = ["collector"]
    page = phone.open("/")
    assert page.is_visible("#forbidden") and page.is_hidden("#page")
    assert page.locator("#pages a:visible").all_inner_texts() == ["Coletar"]
    page.click("#pages a:visible")
    page.wait_for_selector("#collect")
    page.click("#leave")
    page.wait_for_selector("#login:not([hidden])")
    assert server.logins == set()


def pictures(phone, server, content: bytes) -> None:
    """Those of docs/pictures that need a state of their own."""
    page = phone.page
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    page.set_viewport_size({"width": 390, "height": 1180})
    page.click(".next")
    phone.choose(content)
    phone.send()
    page.wait_for_selector("#answer:not([hidden])")
    phone.picture("app-phone-answer")
    page.set_viewport_size(DESK)
    phone.open("/collect")
    for number, (subject, label) in enumerate((("77001", "patient"), ("77002", ""), ("77003", "control"))):
        page.check("[name=consent]")
        page.check("#collect [name=consent_training]")
        page.fill("#collect [name=subject]", subject)
        page.fill("[name=site]", "enfermaria 3")
        page.fill("[name=device]", "celular da unidade")
        page.click(f"#collect label:has([name=label][value='{label}'])")
        phone.choose(content + bytes(number))
        page.click("#collect > button.main")
        page.wait_for_selector(f"#recordings li >> nth={number}")
    page.check("[name=consent]")
    page.fill("#collect [name=subject]", "77004")
    page.fill("[name=age]", "58")
    page.select_option("[name=sex]", "F")
    page.fill("[name=spo2]", "91")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    phone.picture("app-collector")
    server.recordings.clear()


@pytest.mark.slow
def test_accessible(phone, server, spoken, tone):
    """Every page and state passes axe, WCAG 2.2 AA and best practice; contrast in the dark as well."""
    page, found = phone.page, []

    def light() -> None:
        page.evaluate("document.documentElement.dataset.theme = 'light'")

    def look(where: str) -> None:
        light()
        found.extend(phone.axe(where))
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        found.extend(phone.axe(f"{where}, dark", contrast=True))

    page.emulate_media(reduced_motion="reduce")
    server.logins.clear()
    page.goto(server.url)
    page.wait_for_selector("#login:not([hidden])")
    page.click("#login button")
    look("login")
    phone.open()
    look("nurse")
    page.click("#record")
    page.wait_for_selector("[data-state=recording]")
    page.wait_for_timeout(1500)
    phone.picture("app-phone-recording")
    look("recording")
    page.click("#record")
    page.wait_for_selector(".review:not([hidden])")
    page.click(".more summary")
    page.check("[name=consent_training]")
    phone.send()
    look("review, wrong")
    page.fill("[name=subject]", "1")
    phone.context.set_offline(True)
    phone.send()
    page.wait_for_selector("#progress-title >> text=Esperando")
    look("offline")
    phone.context.set_offline(False)
    page.wait_for_selector("#answer:not([hidden])")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    look("positive")
    for result in ({"answer": NEGATIVE}, {"answer": INCONCLUSIVE}, {"error": "silent", "detail": ""}):
        server.result = result
        page.click(".next")
        phone.choose(tone(2, 0.003) if "error" in result else spoken[1])
        phone.send()
        page.wait_for_selector("#answer:not([hidden])")
        look(str(result)[:60])
    server.result = {"answer": fakes.ANSWER}
    if PICTURES:
        pictures(phone, server, spoken[1])
    page.set_viewport_size(DESK)
    phone.open("/collect")
    page.check("[name=consent]")
    page.fill("#collect [name=subject]", "77001")
    phone.choose(spoken[1])
    look("collect")
    page.click("#collect > button.main")
    page.click("#recordings button")
    look("label")
    page.keyboard.press("Escape")
    page.fill("#withdraw [name=subject]", "77001")
    page.click("#withdraw button")
    look("withdraw")
    phone.open("/engineer")
    page.wait_for_selector("#dead table")
    phone.picture("app-engineer")
    look("engineer")
    server.refuse["/v1/dead"] = server.refuse["/v1/live"] = (503, "busy")
    page.click("#refresh")
    page.wait_for_selector("#live .wrong")
    look("engineer, wrong")
    assert found == []


@pytest.mark.slow
def test_theme_and_language_stay(phone, server):
    page = phone.page
    theme = "document.documentElement.dataset.theme"
    page.emulate_media(color_scheme="dark")
    phone.open()
    assert page.evaluate(theme) == "dark"
    page.emulate_media(color_scheme="light")
    phone.until(lambda: page.evaluate(theme) == "light", "the page does not follow the device")
    page.click("#theme")
    page.reload()
    assert page.evaluate(theme) == "dark"
    page.click("#language")
    assert phone.text("#ask-title") == "Ask the person to read aloud"
    page.goto(server.url)
    assert phone.text("#ask-title") == "Ask the person to read aloud"
    assert page.get_attribute(".sentence", "lang") == "pt-BR"  # is read aloud as what it is


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(pages.router())
    return TestClient(app)


def test_headers(client):
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*(src=|application/json))", page.text)
    assert "//" not in re.sub(r"<script type=\"application/json\".*?</script>", "", page.text)  # of no other host
    assert client.get("/", headers={"If-None-Match": page.headers["ETag"]}).status_code == 304
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
    assert len(addresses) >= 5
    for address in addresses:
        file = client.get(address)
        assert file.status_code == 200 and "immutable" in file.headers["Cache-Control"]
        fresh = client.get(address, headers={"If-None-Match": f"W/{file.headers['ETag']}"})
        assert fresh.status_code == 304 and fresh.content == b""
    old = client.get("/static/000000000000/nurse.js")
    assert old.status_code == 200 and old.headers["Cache-Control"] == "no-cache"
    assert client.get("/static/x/..%2Fpages.py").status_code == 404
    assert client.get("/static/x/none.js").status_code == 404
    assert client.get("/sw.js").headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("asked", "stored", "accepted", "language"),
    [(None, None, "", "pt"), (None, None, "en-GB,pt;q=0.5", "en"), (None, None, "de, pt;q=0.4, en;q=0.9", "en"),
     ("en", "pt", "pt", "en"), (None, "en", "pt", "en"), ("xx", None, "en;q=x", "pt")],
)  # fmt: skip
def test_language(asked, stored, accepted, language):
    assert pages.choose(asked, stored, accepted) == language


def leaves(found, name=""):
    if isinstance(found, dict):
        for key, value in found.items():
            yield from leaves(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, found


def test_strings():
    """Both languages say the same things, with the same blanks, and every key that a script names is there."""
    pt, en = (dict(leaves(pages.strings()[language])) for language in pages.LANGUAGES)
    assert pt.keys() == en.keys()
    for key, text in pt.items():
        assert re.findall(r"\{\w+\}", str(text)) == re.findall(r"\{\w+\}", str(en[key])), key
        assert len(text) == len(en[key]) if isinstance(text, list) else text.strip() == text
    for name, (content, *_) in pages.static().items():
        for key in re.findall(r"\bt\('([\w.]+)'", content.decode()):
            assert key in pt, f"{name}: {key}"
