import io
from pathlib import Path

import fake_app
import numpy as np
import pytest
import soundfile
from phone import Phone, chromium


@pytest.fixture(scope="session")
def spoken(small_lake) -> tuple[Path, bytes]:
    """A simulated recording, its file and its bytes: 48 kHz, about 9 s."""
    files = [file for file in (small_lake / "landing").rglob("*.wav") if soundfile.info(file).samplerate == 48000]
    chosen = min(files, key=lambda file: abs(soundfile.info(file).duration - 9))
    return chosen, chosen.read_bytes()


# Not longer than a module: while it is open no other test may run an event loop or open a browser.
@pytest.fixture(scope="module")
def browser(spoken):
    with chromium(spoken[0]) as opened:
        yield opened


@pytest.fixture
def server():
    """The fake API, in which something has happened already."""
    fake = fake_app.full()
    with fake_app.served(fake) as fake.url:
        yield fake


@pytest.fixture
def phone(browser, server):
    """A phone with the pages of the fake API; its user is logged in already."""
    held = Phone(browser, server.url)
    server.logins.add("cookie")
    held.context.add_cookies([{"name": "spira_session", "value": "cookie", "url": server.url}])
    yield held
    held.close()
    assert held.faults == []


@pytest.fixture(scope="session")
def tone():
    """(seconds, level) -> the bytes of a WAV file."""

    def make(seconds: float, level: float) -> bytes:
        samples = np.clip(level * np.sin(np.arange(int(16000 * seconds)) * 0.1), -1, 1)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 16000, format="WAV", subtype="PCM_16")
        return buffer.getvalue()

    return make
