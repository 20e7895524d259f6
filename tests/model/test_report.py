"""The report: what it says, what it keeps to itself, and how it looks in a browser."""

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import CHROMIUM, QUIET

from spira_train import champion, drift, evidence, gate, probes, report
from spira_train.config import Config
from spira_train.metrics import Sample
from spira_train.rng import Random

GATE = gate.Gate.model_validate(
    {
        "min_per_class": 8,
        "noise": {},
        "limits": [
            {"probe": "clean", "metric": "specificity", "min": 0.6, "why": "controls are people too"},
            {"probe": "clean", "metric": "auc", "bound": "low", "min": 0.6, "why": "beyond chance"},
            {"probe": "ward_noise", "metric": "accuracy_drop", "max": 0.3, "why": "a ward is no patient"},
            {
                "probe": "same_voices",
                "metric": "room_share",
                "bound": "low",
                "max": 0.1,
                "why": "the room must be silent",
            },
            {"probe": "baseline_age_sex", "metric": "gain", "min": 0.01, "why": "listen"},
            {"probe": "calibration", "metric": "ece", "bound": "low", "max": 0.3, "why": "8 of 10"},
        ],
        "slices": {"min_per_class": 8, "auc": 0.7, "rate": 0.5},
        "champion": {"margin": 0.05, "alpha": 0.05},
    }
)
DECISION = {"threshold": 0.5, "band": 0.1}
SITES = ("home", "ward <3>", "hospital")


def page(strict: bool = False, rival: bool = False, simulated: bool = False, **changed: Any) -> str:
    return report.render(**inputs(strict, rival, simulated) | changed)


@cache
def plain_page() -> str:
    return page()


@cache
def refused_page() -> str:
    return page(strict=True, rival=True)


def inputs(strict: bool = False, rival: bool = False, simulated: bool = False) -> dict[str, Any]:
    return deepcopy(made(strict, rival, simulated))


@cache
def made(strict: bool, rival: bool, simulated: bool, size: int = 40) -> dict[str, Any]:
    """What `validate` hands over, for a model that hears patients, and finds it harder in a ward."""
    rng = np.random.default_rng(0)
    rows = [row(number) for number in range(size)]
    labels = np.array([each["label"] for each in rows])

    def answers(hearing: float) -> list[float]:
        return np.clip(0.5 + hearing * (labels - 0.5) + rng.normal(0, 0.15, size), 0.01, 0.99).tolist()

    hearing = {"clean": 0.5, "silence": 0.0, "noise_alone": 0.0, "speech_removed": 0.1}
    asked = {name: answers(hearing.get(name, 0.4)) for name in probes.NAMES if "noise_" not in name[4:] or "db" in name}
    asked |= {"noise_alone": answers(0), "voice_0": answers(0), "voice_1": answers(0)}
    asked["clean"] = [
        min(0.99, p + 0.15) for p in asked["clean"]
    ]  # patients are named more often than controls cleared
    sample = Sample.of(labels.tolist(), [each["subject"] for each in rows], 100, Random(1).stream("bootstrap"))
    others = [row(number) for number in range(size, 2 * size)]
    found = evidence.gather(rows, others, sample, asked, DECISION, 8)
    found["champion"] = None
    if rival:
        theirs = {"answers": {name: answers(0.5) for name in champion.ASKED}, "threshold": 0.5}
        found["champion"] = champion.compare(rows, sample, (asked, DECISION), theirs, 8) | {"version": "2026-11-01-aa"}
    per_class = {"controls": int((labels == 0).sum()), "patients": int((labels == 1).sum())}
    description = {"decision": DECISION, "calibration": {"temperature": 1.2}, "parameters": 11881}
    sound = np.sin(np.arange(48_000) / 9).astype(np.float32)
    wrong = [{"label": y, "probability": 0.8 - 0.6 * y, "windows": [0.5, 0.6], "signal": sound} for y in (0, 1)]
    summary = {"best_epoch": 2, "epochs": 3, "partitions": ["2026-11-05"], "recordings": {"train": 8, "validation": 4}}
    trained = {"summary": summary | {"simulated": simulated, "device": "cpu"}, "inputs": {}, "versions": {"torch": "2"}}
    return {
        "config": Config(partition="2026-11-05"),
        "trained": trained | {"outputs": {"model.safetensors": "f" * 64}},
        "found": found,
        "verdict": judged(stricter() if strict else GATE, found, per_class),
        "rows": rows,
        "asked": asked,
        "curves": {"epoch": [1, 2, 3], "loss": [0.7, 0.5, 0.4], "validation_loss": [0.7, 0.6, 0.65]},
        "description": description | {"features": {"window_seconds": 2.0, "step_seconds": 1.0}},
        "statistics": {"data": drift.statistics(rows), "scores": drift.statistics([])},
        "drifted": {"partition": "2026-11-05", "reference": None, "findings": []},
        "misheard": wrong,
    }


def row(number: int) -> dict[str, Any]:
    """A row of the manifest: half of them patients, few of them from the hospital."""
    label = number % 2
    facts = {"label": label, "sex": "FM"[number // 2 % 2], "age": 30 + number, "site": SITES[0 if number > 5 else 2]}
    facts |= {"device": SITES[1], "cause": "copd" if label else None, "seconds": 9.0, "rms_dbfs": -20.0 - number / 7}
    facts |= {"source_rate": 48_000, "source_channels": 1, "bandwidth_hz": 8000.0, "snr_db": 20.0, "partition": "x"}
    return facts | {"subject": f"subject{number:04d}", "recording": f"{number:064x}", "file": f"{number:064x}.flac"}


def judged(limits: gate.Gate, found: dict[str, Any], per_class: dict[str, int]) -> dict[str, Any]:
    checks = gate.judge(limits, found, per_class)
    reasons = [check.text for check in checks if not check.passed]
    version = (found.get("champion") or {}).get("version")
    facts = {"verdict": "refused" if reasons else "blessed", "reasons": reasons, "champion": version}
    facts |= {"checks": [asdict(check) for check in checks], "unproven": gate.unproven(found)}
    return facts | {"test_set": {"digest": "d" * 64, **per_class}}


def stricter() -> gate.Gate:
    changed = GATE.model_dump()
    changed["limits"][0] |= {"min": 2}
    changed["limits"][3] |= {"max": -1}
    changed["limits"].append({"probe": "opus", "metric": "loudness", "max": 1, "why": "nobody measures it"})
    changed["limits"].append({"probe": "mp3", "metric": "score_shift", "max": 1, "why": "nor this"})
    changed["limits"].append({"probe": "silence", "metric": "auc", "max": -1, "why": "nobody speaks"})
    return gate.Gate.model_validate(changed)


def words(html: str) -> str:
    """What a reader sees, in one line."""
    text = re.sub(r"<(style|svg)\b.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


def share(entry: dict[str, float]) -> str:
    return " ".join(f"about {round(100 * entry['value'])} ({round(100 * entry['low'])} to".split())


def test_the_verdict_comes_first_and_in_words() -> None:
    given = inputs()
    text, clean = words(plain_page()), given["found"]["metrics"]["clean"]
    first = text.split("Probes and limits")[0]
    assert share(clean["sensitivity"]) != share(clean["specificity"])
    assert "Blessed: it may be served" in first
    assert f"patients whom it never heard it names {share(clean['sensitivity'])}" in first
    assert f"of 100 controls it clears {share(clean['specificity'])}" in first
    assert "With ward noise around everybody" in first
    assert "There is no champion yet" in first
    assert "not a medical device" in first
    assert "Simulated voices" not in text
    assert "broken" not in text


def test_simulated_voices_are_said_before_the_verdict() -> None:
    text = words(page(simulated=True))
    assert text.index("Simulated voices.") < text.index("Blessed: it may be served")


def test_who_was_heard_in_training_is_not_called_unheard() -> None:
    given = inputs()
    given["found"] |= {"leaks": {"subjects": 2, "recordings": 0}}
    text = words(report.render(**given))
    assert "never heard" not in text
    assert "2 subjects and 0 recordings of the test set were trained on" in text


def test_a_refusal_gives_each_reason_in_plain_words_with_its_limit_and_why() -> None:
    given = inputs(strict=True)
    first = words(report.render(**given)).split("Probes and limits")[0]
    assert len(given["verdict"]["reasons"]) == 5
    assert "Refused: it may not be served" in first
    assert "may be served" not in first
    assert "The model broke 5 of the" in first
    assert re.search(
        r"As recorded: too many controls are taken for patients\. Specificity is [\d.]+, at least 2 is", first
    )
    assert "Why it matters: controls are people too" in first
    assert "told apart where nothing of the patient is left" in first
    assert probes.NAMES["same_voices"] + ": the room gives the class away" in first
    assert probes.NAMES["mp3"] + ": shift of the answers could not be measured" in first
    assert "opus loudness is missing" in first, "a limit on what is unknown is shown as it stands"


def test_every_check_of_the_gate_is_on_the_page() -> None:
    given = inputs(strict=True, rival=True)
    html = report.render(**given)
    kept = [check for check in given["verdict"]["checks"] if not check["subject"].startswith("slice ")]
    for check in kept:
        assert report.plain(check)["short"] in words(html), check["subject"]
    table = html[html.index('id="probes"') : html.index('id="figures"')]
    assert table.count("<b>broken</b>") == 5
    assert "no limit: shown only" in table


def test_what_is_not_proven_is_counted_and_linked() -> None:
    given = inputs()
    html = report.render(**given)
    few = given["verdict"]["unproven"]
    assert few
    assert f'<a href="#groups">{len(few)} group' in html
    assert html.count('<span class="tag warn">unproven</span>') == len(few)
    assert "site: hospital" in words(html)


def test_the_champion_is_named_and_compared() -> None:
    given = inputs(rival=True)
    text = words(report.render(**given))
    clean = given["found"]["champion"]["clean"]
    assert (
        f"the champion 2026-11-01-aa that is served today: recordings won {clean['won']}, lost {clean['lost']}" in text
    )
    assert "Chance (McNemar)" in text


def test_drift_is_a_visible_warning() -> None:
    finding = {"name": "site", "text": "site: ward 90%, was 10%", "drifted": True, "psi": 2.0, "p_value": 0.001}
    quiet = finding | {"name": "recordings", "drifted": False, "psi": None, "p_value": None}
    given = {"partition": "2026-11-05", "reference": "the earlier partitions", "findings": [finding, quiet]}
    html = page(drifted=given)
    assert "The newest recordings differ" in words(html).split("Probes and limits")[0]
    assert '<div class="note warn" role="note"><p><strong>Drift.</strong>' in html
    assert "<strong>Drift.</strong>" not in page(drifted=given | {"findings": [quiet]})


@pytest.mark.parametrize(
    "missing", ["metrics", "ward_noise", "baselines", "misheard", "rows", "curves", "checks", "nan"]
)
def test_a_page_is_made_whatever_is_missing(missing: str) -> None:
    given = inputs()
    nothing = {"metrics": {}, "slices": {}, "reliability": [], "leaks": None, "champion": None}
    empty = drift.statistics([])
    if missing == "metrics":
        given["found"] = nothing
    elif missing in ("ward_noise", "baselines"):
        gone = {name for name in given["found"]["metrics"] if name.startswith((missing, missing[:8] + "_"))}
        given["found"]["metrics"] = {k: v for k, v in given["found"]["metrics"].items() if k not in gone}
    elif missing == "misheard":
        given["misheard"] = []
    elif missing == "rows":
        given |= {
            "rows": [],
            "asked": {},
            "found": nothing,
            "misheard": [],
            "statistics": {"data": empty, "scores": empty},
        }
    elif missing == "curves":
        given["curves"] = {"epoch": [], "loss": [], "validation_loss": []}
    elif missing == "checks":
        given["verdict"] |= {"checks": [], "unproven": []}
    else:
        for entry in given["misheard"]:
            entry |= {"probability": math.nan, "windows": [math.nan]}
        given |= {"found": nothing, "asked": {name: [math.nan] * 40 for name in given["asked"]}}
    if given["found"] is nothing:
        given["verdict"] = judged(GATE, nothing, {"controls": len(given["rows"]) // 2, "patients": 0})
    html = report.render(**given)
    text = words(html)
    assert not re.search(r"\bnan\b", text.lower())
    assert "Intended use and limits" in text
    if given["found"] is nothing:
        assert "Nothing could be measured" in text
        assert "As recorded: AUC could not be measured, and what is missing is refused" in text
        assert "patients, none of whom was heard in training" not in text


def test_the_same_inputs_give_the_same_bytes() -> None:
    html = plain_page()
    assert html == page()
    assert len(html.encode()) < 2_000_000


def test_nobody_is_on_the_page() -> None:
    html = plain_page()
    for each in inputs()["rows"]:
        assert each["subject"] not in html
        assert each["recording"] not in html
    assert "ward &lt;3&gt;" in html, "what recordings say of themselves is text, never markup"
    assert "ward <3>" not in html


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = plain_page().replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe", re.sub(r"base64,[^\"']*", "", html))
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)


class Outline(HTMLParser):
    """Headings, ids, and what refers to an id."""

    def __init__(self, html: str):
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.wanted: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if facts.get("id"):
            self.ids.append(str(facts["id"]))
        self.wanted |= {str(facts[name]) for name in ("aria-labelledby",) if name in facts}
        self.wanted |= {str(facts["href"])[1:]} if tag == "a" else set()
        if tag == "svg":
            self.pictures.append(facts)


def test_headings_are_in_order_and_each_figure_has_its_words() -> None:
    outline = Outline(refused_page())
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.wanted <= set(outline.ids)
    figures = [facts for facts in outline.pictures if "aria-hidden" not in facts]
    assert len(figures) == 9
    assert all(facts["role"] == "img" and facts["aria-labelledby"] for facts in figures)
    named = [name for name in outline.ids if not re.match(r"(DejaVu|[a-z][0-9a-f]{10}|C\d)", name)]
    assert len(named) == len(set(named)), "an id is given once, but for glyphs and clips, which are alike"


@pytest.mark.slow
@pytest.mark.parametrize("html", [plain_page, refused_page])
def test_it_can_be_read_on_a_telephone(html: Callable[[], str], tmp_path: Path) -> None:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: install the Debian package chromium")
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    file.write_text(html(), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for width in (360, 1200):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            said: list[str] = []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, said=said: said.append(request.url))
            tab.goto(file.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert [line for line in said if not line.startswith(("data:", file.as_uri()))] == []
            assert tab.get_by_role("img").count() == 9
        browser.close()


def test_how_right_the_served_versions_were_is_shown_where_it_is_counted():
    from spira_train.live import Live, Share

    one = Live(n=30, inconclusive=4, accuracy=Share(value=0.85, low=0.64, high=0.95))
    text = words(page(live={"2026-11-05-7a7d4e72": one}))
    assert "2026-11-05-7a7d4e72 30 4 about 85 (64 to 95) none yet none yet" in text
    assert "In use" not in words(plain_page())
