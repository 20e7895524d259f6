"""The nurse's page on a phone: from the sentence to the answer, on good networks and bad ones."""

import io

import fake as fakes
import numpy as np
import pytest
import soundfile
from phone import Phone, chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(small_lake):
    """A simulated recording, (path, bytes): the longest of a day, 48 kHz."""
    files = [file for file in (small_lake / "landing").rglob("*.wav") if soundfile.info(file).samplerate == 48000]
    longest = max(files, key=lambda file: soundfile.info(file).duration)
    return longest, longest.read_bytes()


@pytest.fixture(scope="module")
def browser(spoken):
    with chromium(spoken[0]) as opened:
        yield opened


@pytest.fixture
def server():
    fake = fakes.full()
    with fakes.served(fake) as fake.url:
        yield fake


@pytest.fixture
def phone(browser, server):
    held = Phone(browser, server.url)
    yield held
    held.close()
    assert held.faults == []


def wav(samples, rate=16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples, dtype=np.float32), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def tone(seconds: float, level: float) -> np.ndarray:
    return level * np.sin(np.arange(int(16000 * seconds)) * 0.1)


def received(server) -> bytes:
    (content,) = server.audio.values()
    return bytes(content)


def test_recorded_and_answered(phone, server, spoken):
    page = phone.open()
    phone.record(5)
    assert "5," in phone.text(".checks")  # the length, as Brazil writes it
    phone.send()
    assert phone.text("#answer-title") == "O modelo ouviu sinais de insuficiência respiratória"
    shown = page.inner_text("#answer")
    for part in ("78%", "Indício moderado", "38% a 62%", "Não é um diagnóstico"):
        assert part in shown
    assert page.locator("#answer .line").count() == 1 and page.locator("#answer .dot").count() == len(fakes.WINDOWS)
    lit = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert page.eval_on_selector("#answer canvas", lit) > 50
    page.click("#answer > details summary")
    assert "2026-11-05-7a7d4e72" in page.inner_text("#answer > details")
    assert next(iter(server.inferences)) in page.inner_text("#answer > details")
    page.click(".later label:has([value=patient])")
    page.fill("[name=why]", "gasometria")
    page.click(".later button")
    assert "tinha insuficiência" in phone.text(".later .done")
    assert server.labels == [{"id": next(iter(server.inferences)), "label": "patient", "why": "gasometria"}]
    page.wait_for_selector("#history >> text=diagnóstico registrado")
    # What arrived is what was played: nothing was filtered, levelled or cancelled on the way.
    info = soundfile.info(io.BytesIO(received(server)))
    assert (info.format, info.subtype, info.channels) == ("WAV", "PCM_16", 1)
    heard, rate = soundfile.read(io.BytesIO(received(server)))
    played, _ = soundfile.read(spoken[0])
    assert rate == 48000 and 4.5 < len(heard) / rate < 7
    size = len(heard) + len(played)
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)
    at = int(match.argmax())
    shift = at if at < len(heard) else at - size
    ours = heard[max(0, shift) :]
    theirs = played[max(0, -shift) :][: len(ours)]
    assert np.corrcoef(ours[: len(theirs)], theirs)[0, 1] > 0.95


def test_a_file_is_sent_as_it_is(phone, server, spoken):
    page = phone.open("/?lang=en")
    phone.choose(spoken[1])
    page.click(".more summary")
    page.fill("[name=age]", "61")
    page.select_option("[name=sex]", "F")
    page.check("[name=consent_training]")
    phone.send()
    assert "hospital number" in phone.text("#send .wrong")  # without it nobody could withdraw
    page.fill("[name=subject]", "991")
    phone.send()
    assert phone.text("#answer-title") == "The model heard signs of respiratory insufficiency"
    assert received(server) == spoken[1]
    assert server.posted[0]["facts"] == {"age": 61, "sex": "F", "consent_training": True, "subject": "991"}
    assert server.posted[0]["language"] == "en"


def test_poor_recordings_are_told_at_once(phone, server):
    page = phone.open()
    for content, words, sends in (
        (wav(tone(5, 0.002)), "Muito baixo", True),
        (wav(tone(2, 0.3)), "menos de 4 segundos", True),
        (wav(np.clip(tone(5, 1.02), -1, 1)), "distorcido demais", False),
        (wav(np.zeros(80000)), "Não se ouve nada", False),
        (wav(tone(0.3, 0.3)), "Curta demais", False),
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


def test_offline_in_the_middle(phone, server, spoken):
    page = phone.open()
    server.piece = 0.15
    phone.choose(spoken[1])
    phone.send()
    phone.until(lambda: any(len(kept) > 200_000 for kept in server.audio.values()), "nothing was sent")
    phone.context.set_offline(True)
    assert phone.text("#progress-title >> text=Esperando a rede")
    assert "Sem conexão" in page.inner_text("#notice")
    got = len(received(server))
    assert got < len(spoken[1])
    phone.context.set_offline(False)
    assert phone.text("#answer-title")
    assert received(server) == spoken[1]
    assert len(server.inferences) == 1 and len(server.announced) == 2
    assert page.is_hidden("#progress")
    page.reload()  # the recording is gone from the phone: nothing is sent again
    page.wait_for_selector("#history li")
    assert page.is_visible("#ask") and page.is_hidden(".review") and len(server.announced) == 2


def test_reload_in_the_middle(phone, server, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    page.reload()  # before it is sent: it is still there, and was not sent
    assert "Recuperamos" in phone.text("#say >> text=Recuperamos")
    assert server.announced == []
    server.piece = 0.15
    phone.send()
    phone.until(lambda: any(len(kept) > 200_000 for kept in server.audio.values()), "nothing was sent")
    page.reload()
    assert phone.text("#answer-title")
    assert received(server) == spoken[1] and len(set(server.announced)) == 1


def test_never_sent_twice(phone, server, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    page.evaluate("for (let i = 0; i < 5; i += 1) document.querySelector('#send').requestSubmit()")
    assert phone.text("#answer-title")
    assert len(server.announced) == 1 and received(server) == spoken[1]


def test_the_answer_without_events(phone, server, spoken):
    phone.open()
    server.events = False
    phone.choose(spoken[1])
    phone.send()
    assert phone.text("#answer-title")


def test_session_ends_while_sending(phone, server, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    server.logins.clear()
    phone.send()
    assert "Sua sessão terminou" in phone.text("#login .wrong")
    page.fill("[name=name]", "demo")
    page.fill("[name=password]", "right")
    page.keyboard.press("Enter")
    assert phone.text("#answer-title")
    assert received(server) == spoken[1]


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


def test_opens_without_a_network(phone, server, spoken):
    page = phone.open()
    page.evaluate("navigator.serviceWorker.ready")
    page.reload()  # now through the worker, which keeps the page
    page.wait_for_selector("#page:not([hidden])")
    phone.context.set_offline(True)
    page.reload()
    assert "Sem conexão" in phone.text("#notice")
    phone.choose(spoken[1])
    phone.send()
    assert phone.text("#progress-title >> text=Esperando a rede")
    phone.context.set_offline(False)
    assert phone.text("#answer-title")
    assert received(server) == spoken[1]


def test_by_keyboard_alone(phone, server):
    page = phone.page
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
    page.wait_for_selector("[data-state=recording]")
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
