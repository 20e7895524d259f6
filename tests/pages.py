"""The pages that people see, in headless Chromium: Airflow's trigger form and its runs, MLflow.

Screenshots go to the folder that `SPIRA_PICTURES` names, where it is set: those in docs/pictures were made so.
"""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
# Chromium asks its maker for this and that at every start; a closed network refuses it, and nothing here needs it.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


class Pages:
    """A browser that is logged in to Airflow at `url`."""

    def __init__(self, url: str, user: str, password: str, dag_id: str = "spira_training") -> None:
        self.url, self.user, self.password, self.dag = url, user, password, f"{url}/dags/{dag_id}"

    def __enter__(self) -> "Pages":
        if not Path(CHROMIUM).exists():
            pytest.skip(f"{CHROMIUM} is missing: install the Debian package chromium")
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        self.page: Page = self._browser.new_page(viewport={"width": 1360, "height": 940})
        self.page.set_default_timeout(60_000)
        self.page.goto(self.url)
        self.page.fill("input[name=username]", self.user)
        self.page.fill("input[name=password]", self.password)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(re.compile(re.escape(self.url) + "/?$"))
        self.page.get_by_role("link", name="Dags").first.wait_for()
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def trigger(self, values: Mapping[str, object]) -> str:
        """Fill in the trigger form by hand and send it; returns the id of the run."""
        run_id = f"form-{uuid.uuid4().hex[:8]}"
        self.page.goto(self.dag)
        self.page.get_by_role("button", name="Trigger").first.click()
        form = self.page.get_by_role("dialog")
        for name, value in values.items():
            section = name.partition(".")[0].capitalize() if "." in name else ""
            field = form.locator(f"[name='element_{name}']")
            if section and not field.is_visible():
                form.get_by_role("button", name=section, exact=True).click()
            field.fill(str(value))
            field.press("Tab")  # a field is taken over when it is left
        self._picture("trigger-form")
        form.get_by_role("button", name="Advanced Options").click()
        form.locator("[name=dagRunId]").fill(run_id)
        form.get_by_role("button", name="Trigger", exact=True).click()
        form.wait_for(state="hidden")
        return run_id

    def run(self, run_id: str, picture: str) -> str:
        """Look at a run, its tasks beside it; what the page says."""
        self.page.goto(f"{self.dag}/runs/{run_id}")
        self.page.get_by_text(re.compile("^(Success|Failed)$")).first.wait_for()
        self.page.wait_for_timeout(1500)  # the grid is drawn after the text
        self._picture(picture)
        return self.page.inner_text("body")

    def graph(self, run_id: str) -> None:
        """The DAG as a graph, with the states of a run."""
        self.page.goto(f"{self.dag}/runs/{run_id}")
        self.page.get_by_role("button", name=re.compile("graph", re.IGNORECASE)).first.click()
        self.page.wait_for_timeout(3000)
        self._picture("dag")

    def other(self, url: str, wait_for: str, picture: str) -> str:
        """Another page (MLflow's); what it says."""
        self.page.goto(url)
        self.page.get_by_text(wait_for).first.wait_for()
        self.page.wait_for_timeout(1500)
        self._picture(picture)
        return self.page.inner_text("body")

    def _picture(self, name: str) -> None:
        if folder := os.environ.get("SPIRA_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))
