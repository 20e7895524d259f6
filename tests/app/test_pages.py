"""The nurse's page on a phone, with the real app, NATS and a worker: from the sentence to the answer, on good networks
and bad ones; then the collector's and the engineer's, with the real collection."""

import io

import numpy as np
import pytest
import soundfile
from collecting import service
from fake_gateway import answer
from inference_parts import parts, running
from phone import Phone

from access import accounts
from access.database import engine, sessions

pytestmark = pytest.mark.slow
SLOW = 300_000  # bytes a second, of a poor network
PASSWORD = "a password of the tests"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    it = parts(folder, pauses="0.05,0.1")
    opened = engine(it.places["SPIRA_DATABASE"])
    with sessions(opened).begin() as session:
        accounts.add(session, "ana", ["clinician", "collector", "engineer"], PASSWORD)
    opened.dispose()
    collection = service(folder)
    it.app.env["SPIRA_COLLECT"] = collection.url
    with running(it):
        yield it
    collection.stop()
    assert "Traceback" not in it.app.log + it.worker.log + collection.log()


@pytest.fixture(scope="module")
def cookies(browser, stack):
    """Logged in once, by hand."""
    phone = Phone(browser, stack.url)
    page = phone.open(name="ana", password=PASSWORD)
    assert page.is_visible("#record")
    found = phone.context.cookies()
    assert next(one for one in found if one["name"] == "spira_session")["httpOnly"]
    phone.close()
    return found


@pytest.fixture
def phone(browser, stack, cookies):
    held = Phone(browser, stack.url)
    held.context.add_cookies(cookies)
    held.before = set(stack.asked)
    yield held
    held.close()
    assert held.faults == []


def received(stack, phone) -> bytes:
    """What the model was asked about; once."""
    (id,) = [id for id in stack.asked if id not in phone.before]
    (file,) = (stack.folder / "inferences").rglob(id)
    return file.read_bytes()


def under_way(stack) -> int:
    """How much of an unfinished upload has arrived."""
    return max((file.stat().st_size for file in (stack.folder / "home").rglob("*") if file.is_file()), default=0)


def test_recorded_and_answered(phone, stack, spoken):
    page = phone.open()
    phone.record(4)
    assert " s" in phone.text(".checks") and "Volume bom" in page.inner_text(".checks")
    phone.send()
    assert phone.text("#answer-title") == "O modelo ouviu sinais de insuficiência respiratória"
    shown = page.inner_text("#answer")
    for part in ("80%", "Indício moderado", "Não é um diagnóstico"):
        assert part in shown
    assert page.locator("#answer .line").count() == 1 and page.locator("#answer .dot").count() == 2
    lit = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert page.eval_on_selector("#answer canvas", lit) > 50
    page.click("#answer > details summary")
    said = page.inner_text("#answer > details")
    assert answer("", 0)["model"]["version"] in said and stack.asked[-1] in said
    page.click(".later label:has([value=patient])")
    page.fill("[name=why]", "gasometria")
    page.click(".later button")
    assert "tinha insuficiência" in phone.text(".later .done")
    assert phone.text("#history >> text=diagnóstico registrado")

    # What arrived is what was played: nothing was filtered, levelled or cancelled on the way.
    content = io.BytesIO(received(stack, phone))
    info = soundfile.info(content)
    assert (info.format, info.subtype, info.channels, info.samplerate) == ("WAV", "PCM_16", 1, 48000)
    content.seek(0)
    heard, played = soundfile.read(content)[0], soundfile.read(spoken[0])[0]
    assert 3.5 < len(heard) / 48000 < 6
    size = len(heard) + len(played)
    match = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(played, size)), size)
    at = int(match.argmax())
    shift = at if at < len(heard) else at - size
    ours, theirs = heard[max(0, shift) :], played[max(0, -shift) :]
    both = min(len(ours), len(theirs))
    assert np.corrcoef(ours[:both], theirs[:both])[0, 1] > 0.95


def test_a_file_is_sent_as_it_is(phone, stack, spoken):
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
    assert received(stack, phone) == spoken[1]


def test_offline_in_the_middle(phone, stack, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    phone.throttle(SLOW)
    phone.send()
    phone.until(lambda: under_way(stack) > 100_000, "nothing was sent")
    phone.throttle(0)
    assert phone.text("#progress-title >> text=Esperando a rede")
    assert "Sem conexão" in page.inner_text("#notice")
    assert 0 < under_way(stack) < len(spoken[1]) and set(stack.asked) == phone.before
    phone.throttle(10 * SLOW)
    assert phone.text("#answer-title")
    assert received(stack, phone) == spoken[1]
    page.reload()  # the recording has left the phone: nothing is sent again
    page.wait_for_selector("#history li")
    assert page.is_visible("#record") and page.is_hidden(".review")
    assert received(stack, phone) == spoken[1]


def test_reload_in_the_middle(phone, stack, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    page.reload()  # before it is sent: it is still there, and was not sent
    assert phone.text("#say >> text=Recuperamos")
    phone.throttle(SLOW)
    phone.send()
    phone.until(lambda: under_way(stack) > 100_000, "nothing was sent")
    page.reload()
    assert phone.text("#answer-title")
    assert received(stack, phone) == spoken[1]


def test_never_sent_twice(phone, stack, spoken):
    page = phone.open()
    phone.choose(spoken[1])
    other = phone.context.new_page()  # the same recording is found by a second tab
    other.goto(stack.url)
    other.wait_for_selector(".review:not([hidden])")
    again = "for (let i = 0; i < 5; i += 1) document.querySelector('#send').requestSubmit()"
    page.evaluate(again)
    other.evaluate(again)
    assert phone.text("#answer-title")
    other.wait_for_selector("#answer:not([hidden])")
    assert received(stack, phone) == spoken[1]


def test_opens_without_a_network(phone, stack, spoken):
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
    assert received(stack, phone) == spoken[1]


def test_no_answer_and_tried_again(phone, stack, spoken):
    page = phone.open()
    stack.gateway.kill()
    phone.choose(spoken[1])
    phone.send()
    assert "não respondeu depois de várias tentativas" in phone.text(".verdict")
    stack.gateway.start()
    phone.open("/engineer")
    page.click("#dead button")
    assert phone.text("#dead >> text=Nenhum pedido parado")
    assert "100%" in page.inner_text("#live")  # of the one later diagnosis
    phone.open("/")
    page.click("#history button >> nth=0")
    assert "sinais" in phone.text("#answer-title")


def test_collecting(phone, stack, spoken):
    page = phone.open("/collect")
    assert "consentimento, prontuário ou código, gravação" in page.inner_text("#missing")
    page.fill("#collect [name=subject]", "77001")
    page.fill("[name=site]", "ana@example.org")
    page.fill("[name=spo2]", "91.5")
    phone.choose(spoken[1])
    assert "consentimento" in page.inner_text("#missing") and page.is_disabled("#collect > button.main")
    page.check("[name=consent]")
    page.click("#collect > button.main")
    assert "dado pessoal" in phone.text("#collect-wrong")
    page.fill("[name=site]", "enfermaria 3")
    page.click("#collect > button.main")
    assert "Gravação guardada" in phone.text("#day-told")
    assert not page.is_checked("[name=consent]") and page.input_value("#collect [name=subject]") == ""
    assert page.input_value("[name=site]") == "enfermaria 3"  # the ward stays, the person does not
    assert phone.text("#recordings >> text=enfermaria 3")  # the list is fetched once the sentence stands there
    assert "Rotular" in page.inner_text("#recordings")

    page.click("#recordings button")
    page.click("#labelling label:has([value=control])")
    page.fill("#labelling [name=why]", "alta")
    page.click("#labelling [value=yes]")
    assert phone.text("#day-told >> text=Rótulo registrado")
    assert phone.text("#recordings >> text=Não, controle")
    page.fill("#withdraw [name=subject]", "77001")
    page.click("#withdraw button")
    assert page.is_disabled("#withdrawing [value=yes]")
    page.keyboard.press("Escape")
    assert "Retirada" not in page.inner_text("#recordings")
    for subject, told in (("77001", "#day-told >> text=Pessoa retirada"), ("nobody", "#withdraw .wrong")):
        page.fill("#withdraw [name=subject]", subject)
        page.click("#withdraw button")
        page.check("#withdrawing [name=sure]")
        page.click("#withdrawing [value=yes]")
        assert phone.text(told)
    assert phone.text("#recordings >> text=Retirada")
