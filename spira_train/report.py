"""The report of a run: one self-contained HTML page, for a clinician at its top and for an auditor below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from spira_train import baseline, drift, figures, probes
from spira_train.config import Config
from spira_train.live import Live

TEMPLATE = Path(__file__).with_name("report.html.j2")
# The probes by what they ask.
GROUPS = {
    "The patient": ("clean",),
    "The ward": tuple(name for name in probes.NAMES if name.startswith("ward_noise")),
    "The device, the line, the level": ("quiet", "loud", "device", "telephone", "mp3", "opus"),
    "The room, the words, nobody": ("same_voices", "reversed", "speech_removed", "noise_alone", "silence"),
    "Without listening": tuple(f"baseline_{name}" for name in baseline.NAMES),
    "Calibration": ("calibration",),
}
WORDS = {
    **probes.NAMES,
    **{f"baseline_{name}": words for name, words in baseline.NAMES.items()},
    "calibration": "Its probabilities",
}
# metric -> what it is called, what it means where a limit is broken
METRICS = {
    "accuracy": ("accuracy", "too few answers are right"),
    "sensitivity": ("sensitivity", "too many patients are missed"),
    "specificity": ("specificity", "too many controls are taken for patients"),
    "f1": ("F1", "too few answers of “patient” are right, or too few patients are named"),
    "auc": ("AUC", "patients and controls are told apart too poorly"),
    "accuracy_drop": ("drop of accuracy", "too many answers that were right turn wrong"),
    "score_shift": ("shift of the answers", "the answers move too far"),
    "room_share": ("the room's share of what parts the classes", "the room gives the class away"),
    "inconclusive": ("share of inconclusive answers", "too many answers are “inconclusive”"),
    "conclusive_accuracy": ("accuracy of conclusive answers", "too few conclusive answers are right"),
    "gain": ("AUC gained by listening", "listening adds too little to it"),
    "ece": ("calibration error", "they cannot be taken at their word"),
    "overconfidence": ("overconfidence", "they are surer than they are right"),
    "brier": ("Brier score", "they lie too far from the truth"),
}
COLUMNS = {
    "label": "Class",
    "sex": "Sex",
    "age": "Age, years",
    "site": "Site",
    "device": "Device",
    "cause": "Cause",
    "seconds": "Length, s",
    "rms_dbfs": "Level, dB of full scale",
    "snr_db": "Speech above noise, dB",
    "bandwidth_hz": "Bandwidth, Hz",
    "source_rate": "Delivered at, Hz",
    "source_channels": "Channels",
    "features": "Features",
    "score": "The model's answers",
    "recordings": "Recordings",
}
CLASSES = {"0": "controls", "1": "patients"}

Facts = Mapping[str, Any]


def render(
    *,
    config: Config,
    trained: Facts,
    found: Facts,
    verdict: Facts,
    rows: Sequence[Facts],
    asked: Mapping[str, Sequence[float]],
    curves: Mapping[str, Sequence[float]],
    description: Facts,
    statistics: Facts,
    drifted: Facts,
    misheard: Sequence[Facts],
    blind: Mapping[str, Sequence[float]] | None = None,
    live: Mapping[str, Live] | None = None,
) -> str:
    """The page as HTML; the same inputs give the same bytes.

    The arguments are what `validate` finds; blind: the baselines' answers, where their ROC curves shall be drawn; live:
    how right the served versions were on later diagnoses.
    """
    metrics, checks = found.get("metrics", {}), sorted_checks(verdict.get("checks", []))
    best = trained.get("summary", {}).get("best_epoch", 0)
    labels = [row["label"] for row in rows]
    drawings = figures.gallery(found, labels, asked, curves, best, description, misheard, blind or {})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "hundred": lambda share: round(100 * share),
        "upper": lambda text: text[:1].upper() + text[1:],
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        trained=trained,
        summary=trained.get("summary", {}),
        metrics=metrics,
        clean=metrics.get("clean"),
        ward=metrics.get("ward_noise"),
        found=found,
        verdict=verdict,
        reasons=[check for check in map(plain, verdict.get("checks", [])) if not check["passed"]],
        probes=_probes(metrics, checks),
        checks=checks,
        unproven=verdict.get("unproven", []),
        figures=drawings,
        misheard=[{"label": entry["label"], "probability": entry["probability"]} for entry in misheard],
        decision=description["decision"],
        description=description,
        data=described(statistics.get("data", {}), drift.statistics(rows) if rows else {}),
        counts={"trained": statistics.get("data", {}).get("count", 0), "test": len(rows)},
        drifted=drifted,
        moved=[finding for finding in drifted.get("findings", []) if finding["drifted"]],
        live=live or {},
        names=WORDS,
        columns=COLUMNS,
        settings=config.model_dump(mode="json"),
    )


def sorted_checks(checks: Sequence[Facts]) -> dict[str, Any]:
    """The gate's checks by where they are shown: `probes` and `slices` by name, `champion`, and the `others`."""
    found: dict[str, Any] = {"probes": {}, "slices": {}, "champion": [], "others": []}
    for check in map(plain, checks):
        probe, _, metric = check["subject"].rpartition(" ")
        if check["subject"].startswith("champion"):
            found["champion"].append(check)
        elif check["subject"].startswith("slice "):
            found["slices"].setdefault(check["subject"].removeprefix("slice "), []).append(check)
        elif probe in WORDS and metric in METRICS:
            found["probes"].setdefault(probe, []).append(check)
        else:
            found["others"].append(check)
    return found


def plain(check: Facts) -> dict[str, Any]:
    """`check` with `short`, its text without the gate's own names, and `words`, what it means that it is broken."""
    subject, text = check["subject"], check["text"]
    probe, _, metric = subject.rpartition(" ")
    words = {
        "test set size": "The test set is too small to prove anything",
        "leaks": "Nobody can say that the test set was never heard in training",
        "slices": "No group of people could be looked at",
        "champion": "Nobody can say whether it is better or worse than what is served",
    }.get(subject, "")
    if subject.startswith("slice "):
        words = f"The group “{subject.removeprefix('slice ')}” is served too poorly"
    elif subject.startswith("champion "):
        against = subject.removeprefix("champion ").removeprefix("slice ")
        words = f"It is not as good as the champion that is served ({WORDS.get(against, against).lower()})"
    elif probe in WORDS and metric in METRICS:
        called, meant = METRICS[metric]
        if text.endswith("is missing"):
            meant = f"{called} could not be measured, and what is missing is refused"
        elif metric == "auc" and "at most" in text:
            meant = "patients and controls are told apart where nothing of the patient is left"
        words, text = f"{WORDS[probe]}: {meant}", text.replace(subject, called, 1)
    return dict(check) | {"short": text, "words": words or text}


def described(trained: Facts, tested: Facts) -> list[dict[str, Any]]:
    """One row a column of the data: {name, trained, test}, each a list of (value, recordings, share) or a text."""

    def cell(data: Facts, name: str) -> Any:
        count = data.get("count", 0)
        if not count:
            return "none"
        if name in drift.NUMERIC:
            return _spread(data["numeric"].get(name) or {"count": 0})
        values = data["categorical"].get(name, {})
        shown = CLASSES if name == "label" else {}
        return [(shown.get(value, value), number, number / count) for value, number in values.items()]

    columns = [name for name in COLUMNS if name in (*drift.CATEGORICAL, *drift.NUMERIC) and name != "score"]
    return [{"name": COLUMNS[name], "trained": cell(trained, name), "test": cell(tested, name)} for name in columns]


def _spread(numbers: Facts) -> str:
    if "median" not in numbers:
        return f"known of {numbers['count']}"
    low, middle, high = (
        None if value is None else f"{float(f'{value:.3g}'):g}"
        for value in (_quantile(numbers, 0.25), numbers["median"], _quantile(numbers, 0.75))
    )
    around = f" ({low} to {high})" if low and high else ""
    return f"{middle}{around}" + (f"; unknown of {numbers['missing']}" if numbers["missing"] else "")


def _quantile(numbers: Facts, share: float) -> float | None:
    """About the value below which `share` of the numbers lie, from their bins; None beyond the outermost edges."""
    edges, wanted, below = numbers["edges"], share * numbers["count"], numbers["bins"][0]
    if not edges or wanted < below:
        return None
    for low, high, inside in zip(edges, edges[1:], numbers["bins"][1:], strict=False):
        if wanted <= below + inside:
            return float(low + (high - low) * (wanted - below) / max(inside, 1))
        below += inside
    return float(edges[-1]) if wanted <= below else None


def _probes(metrics: Facts, checks: Facts) -> dict[str, list[dict[str, Any]]]:
    """Group -> its rows {name, words, entry, checks}: every probe that was measured or that the gate asks for."""
    known = [name for name in WORDS if name in metrics or name in checks["probes"]]
    found = {}
    for group, heads in GROUPS.items():
        names = [name for name in known if name in heads]
        if names:
            found[group] = [
                {"words": WORDS[name], "entry": metrics.get(name, {}), "checks": checks["probes"].get(name, [])}
                for name in names
            ]
    return found
