"""A browser as a nurse holds it: headless Chromium at a phone's size, whose microphone plays a WAV file."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import CHROMIUM, QUIET
from playwright.sync_api import Browser, Error, Page, sync_playwright

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}
PICTURES = os.environ.get("SPIRA_PICTURES", "")
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
QUICK = {"preload": False, "resultTypes": ["violations"], "elementRef": False}
# Refusals that a page expects show up here as well.
_EXPECTED = ("Failed to load resource", "net::ERR_INTERNET_DISCONNECTED")


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """microphone: the WAV file that it plays from the moment it is opened, once."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: install the Debian package chromium")
    fakes = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    fakes.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET + fakes)
        yield browser
        browser.close()


class Phone:
    """A page of the app at `url`; faults of its scripts and of its policy are kept in `faults`."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url, self.faults = url, []
        self.network: Any = None
        defaults: dict[str, Any] = {"viewport": PHONE, "locale": "pt-BR", "color_scheme": "light"}
        if PICTURES:
            defaults["device_scale_factor"] = 1.5
        self.context = browser.new_context(**(defaults | context))
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(word in message.text for word in _EXPECTED):
            self.faults.append(message.text)

    def open(self, path: str = "/", password: str = "right", name: str = "demo") -> Page:  # noqa: S107
        """Go to a page and log in, where that is asked."""
        page = self.page
        try:
            page.goto(self.url + path)
        except Error as error:  # containers come and go beside the tests, and with them the machine's networks
            if "ERR_NETWORK_CHANGED" not in str(error):
                raise
            page.goto(self.url + path)
        page.wait_for_selector("#login:not([hidden]), #page:not([hidden]), #forbidden:not([hidden])")
        if page.is_visible("#login"):
            page.fill("[name=name]", name)
            page.fill("[name=password]", password)
            page.click("#login button")
            page.wait_for_selector("#login", state="hidden")
        return page

    def record(self, seconds: float) -> None:
        """Hold the recorder on for about this long."""
        self.page.click("#record")
        self.hears()
        time.sleep(seconds)
        self.page.click("#record")
        self.page.wait_for_selector(".review:not([hidden])")

    def hears(self) -> None:
        """Wait until sound comes from the microphone: on a busy machine a take may begin without."""
        self.page.wait_for_selector("[data-state=recording]")
        self.until(lambda: float(self.page.get_attribute(".meter", "aria-valuenow") or -60) > -55, "no sound comes")

    def choose(self, content: bytes, name: str = "sentence.wav", kind: str = "audio/wav") -> None:
        """A file instead."""
        self.page.set_input_files(".file input", {"name": name, "mimeType": kind, "buffer": content})
        self.page.wait_for_selector(".review:not([hidden]), .take .wrong:not([hidden])")

    def throttle(self, upload: int) -> None:
        """upload: bytes a second that leave the phone from now on; 0: it is offline."""
        self.network = self.network or self.context.new_cdp_session(self.page)  # with two sessions, who is right?
        speed = {"offline": not upload, "latency": 0, "downloadThroughput": -1, "uploadThroughput": upload or -1}
        self.network.send("Network.emulateNetworkConditions", speed)

    def send(self) -> None:
        self.page.click("#send button.main")

    def text(self, selector: str) -> str:
        """What stands there once it is to be seen."""
        self.page.wait_for_selector(selector)
        return self.page.inner_text(selector)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, what
            self.page.wait_for_timeout(30)

    def axe(self, where: str, *, contrast: bool = False) -> list[str]:
        """What an accessibility checker finds wrong with what is to be seen now; contrast: only look at that."""
        if contrast:  # the checker is in the page already
            found = self.page.evaluate("options => axe.run(document, options)", QUICK | {"runOnly": ["color-contrast"]})
        else:
            found = Axe().run(self.page, options=QUICK | {"runOnly": STANDARDS}).response
        return [f"{where}: {one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found["violations"]]

    def picture(self, name: str) -> None:
        """A screenshot into the folder that `SPIRA_PICTURES` names; those in docs/pictures were made so."""
        if PICTURES:
            self.page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))

    def close(self) -> None:
        self.context.close()
