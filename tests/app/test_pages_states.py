"""States of the nurse's page that no test can provoke in the real app, at the fake one."""

import pytest

pytestmark = pytest.mark.slow


def test_poor_recordings_are_told_at_once(phone, server, tone):
    page = phone.open()
    for content, words, sends in (
        (tone(5, 0.002), "Muito baixo", True),
        (tone(2, 0.3), "menos de 4 segundos", True),
        (tone(5, 1.02), "distorcido demais", False),
        (tone(5, 0), "Não se ouve nada", False),
        (tone(0.3, 0.3), "Curta demais", False),
    ):
        phone.choose(content)
        assert words in phone.text(".checks")
        assert page.is_visible("#send") == sends
        if sends:
            assert page.inner_text("#send button.main") == "Enviar mesmo assim"
        page.click(".again")
    phone.choose(b"no sound at all")
    assert "Não conseguimos ler" in phone.text(".take .wrong")
    assert server.announced == []


def test_the_answer_without_events(phone, server, spoken):
    phone.open()
    server.events = False
    phone.choose(spoken[1])
    phone.send()
    assert phone.text("#answer-title")


def test_session_ends_while_sending(phone, server, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    page.wait_for_selector("#history-empty")  # nothing else asks any more
    server.logins.clear()
    phone.send()
    assert "Sua sessão terminou" in phone.text("#login .wrong")
    page.fill("[name=name]", "demo")
    page.fill("[name=password]", "right")
    page.keyboard.press("Enter")
    assert phone.text("#answer-title")
    assert server.received == spoken[1]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [("no_answer", "não respondeu depois de várias tentativas"), ("a_new_word", "Algo não deu certo")],
)
def test_errors_are_sentences(phone, server, spoken, error, sentence):
    page = phone.open()
    server.result = {"error": error, "detail": "said for programs"}
    phone.choose(spoken[1])
    phone.send()
    assert sentence in phone.text(".verdict")
    assert ("said for programs" in page.inner_text("#answer")) == (error == "a_new_word")
    assert next(iter(server.inferences)) in page.inner_text("#answer")
    page.click(".next")
    assert page.is_visible("#record")


def test_refused_and_discarded(phone, server, spoken):
    page = phone.open()
    server.refuse["/v1/inferences"] = (413, "too_large")
    phone.choose(spoken[1])
    phone.send()
    assert phone.text("#progress-text >> text=grande demais")
    server.refuse.clear()
    page.click("#discard")
    page.reload()
    page.wait_for_selector("#page:not([hidden])")
    assert page.is_hidden(".review") and server.announced == []


def test_by_keyboard_alone(phone, server):
    page = phone.page
    server.logins.clear()
    server.lists = 3  # what comes late must not call anybody back from where they are by then
    page.goto(server.url)
    page.wait_for_selector("#login:not([hidden])")
    press, write = page.keyboard.press, page.keyboard.type
    write("demo")
    press("Tab")
    write("right")
    press("Enter")
    page.wait_for_selector("#page:not([hidden])")

    def tab_to(selector: str) -> None:
        for _ in range(30):
            press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"{selector}: no focus ring"
                return
        raise AssertionError(f"{selector} cannot be reached with Tab")

    tab_to("#record")
    press("Space")
    phone.hears()
    page.wait_for_timeout(1500)
    press("Enter")
    page.wait_for_selector(".review:not([hidden])")
    assert page.evaluate("document.activeElement.className") == "play"
    tab_to("#send button.main")
    press("Enter")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "answer-title"
    tab_to(".later [name=label]")
    press("Space")
    tab_to(".later button")
    press("Enter")
    assert phone.text(".later .done")


@pytest.mark.parametrize("lost", ["**/nurse.js", "**/words.js", "**/v1/session", "**/v1/inferences?*"])
def test_what_a_changing_network_took_is_fetched_again(phone, lost):
    left = [1]

    def once(route):
        route.abort("connectionreset") if left and left.pop() else route.continue_()

    phone.context.route(lost, once)
    phone.open()
    assert phone.text("#history-empty")
    assert not left


def test_a_page_that_never_arrives_is_not_loaded_for_ever(phone):
    asked = []
    phone.context.route("**/nurse.js", lambda route: (asked.append(1), route.abort("connectionreset")))
    phone.page.goto(phone.url)
    phone.until(lambda: len(asked) == 3, "it gave up too early")
    phone.page.wait_for_timeout(1000)
    assert len(asked) == 3
