"""The report's figures as SVG to be put into a page: its colours, light or dark, are the page's own.

The same inputs give the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from spira_train import baseline, probes
from spira_train.audio import SAMPLE_RATE

# Each becomes a variable of the page, so that a figure follows its light and its dark dress.
INK, PATIENT, CONTROL, QUIET = "#25303b", "#b8442f", "#2f6f8f", "#9aa5b1"
COLOURS = {INK: "var(--ink)", PATIENT: "var(--patient)", CONTROL: "var(--control)", QUIET: "var(--faint)"}
STYLE: Any = {
    "svg.hashsalt": "spira",
    "svg.fonttype": "path",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDTH = 3.9  # inches; a telephone shows it at nearly its natural size
# Of the spectrogram. Coarse on purpose: it shows pauses, noise and words' places, and gives away little of a voice.
COLUMN, BANDS, DECIBELS, STEP = SAMPLE_RATE // 32, 48, 60, 3  # samples a column, bands, range in dB, dB a shade
HEARD = {"clean": "as recorded", "ward_noise": "in ward noise"}

Values = Sequence[float]
Facts = Mapping[str, Any]


def gallery(
    found: Facts,
    labels: Sequence[int],
    asked: Mapping[str, Values],
    losses: Mapping[str, Values],
    best: int,
    description: Facts,
    misheard: Sequence[Facts],
    blind: Mapping[str, Values],
) -> dict[str, str]:
    """Name -> SVG of each figure that there are numbers for; the page has the words to go with them."""
    metrics, decision = found.get("metrics", {}), description["decision"]
    made: dict[str, tuple[Callable[[Figure], None], float]] = {}
    if clean := metrics.get("clean"):
        answers = {name: asked[probe] for probe, name in HEARD.items() if probe in metrics and probe in asked}
        lines = {words.lower(): blind[name] for name, words in baseline.NAMES.items() if name in blind}
        points = {words.lower(): metrics.get(f"baseline_{name}") for name, words in baseline.NAMES.items()}
        points = {} if lines else {words: entry for words, entry in points.items() if entry}
        made["roc"] = partial(roc, labels=labels, answers=answers, blind=lines, points=points), 3.6
        if found.get("reliability"):
            made["reliability"] = partial(reliability, bins=found["reliability"], decision=decision), 3.6
        loud = {f"{snr} dB": metrics.get(f"ward_noise_{snr}db") for snr in probes.SNRS}
        if steps := {name: entry for name, entry in loud.items() if entry}:
            made["noise"] = partial(noise, steps={"as\nrecorded": clean} | steps), 3.0
        if groups := found.get("slices"):
            draw = partial(slices, groups=groups, whole=clean["accuracy"])
            made["slices"] = draw, 0.9 + 0.38 * len(groups)
        for name, probe in (("answers", "clean"), ("answers-ward", "ward_noise")):
            if HEARD[probe] in answers:
                draw = partial(scores, labels=labels, answers=asked[probe], decision=decision)
                made[name] = draw, 3.0
    for entry in misheard:
        if math.isfinite(entry["probability"]) and len(entry["signal"]):
            draw = partial(recording, entry=entry, features=description["features"], decision=decision)
            made[f"misheard-{entry['label']}"] = draw, 3.0
    if losses.get("epoch"):
        made["curves"] = partial(curves, losses=losses, best=best), 3.0
    return {name: drawn(draw, name, height) for name, (draw, height) in made.items()}


def drawn(draw: Callable[[Figure], None], name: str, height: float = 3.0) -> str:
    """`draw` on an empty figure, as an <svg> element that the page's element `name` describes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    # Glyphs and clips are named by their content; whatever else has an id would have it once in each figure.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'\s+id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)  # 1/100 point is enough
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-labelledby="figure-{name}" ', 1)


def curves(figure: Figure, losses: Mapping[str, Values], best: int) -> None:
    axes = figure.subplots()
    axes.plot(losses["epoch"], losses["loss"], color=QUIET, label="training")
    axes.plot(losses["epoch"], losses["validation_loss"], color=CONTROL, label="validation")
    axes.axvline(best, color=PATIENT, linewidth=1, linestyle=":", label=f"kept: epoch {best}")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend()


def roc(
    figure: Figure, labels: Sequence[int], answers: Mapping[str, Values], blind: Mapping[str, Values], points: Facts
) -> None:
    """answers: "as recorded" and so on -> (R,); blind: the same of baselines; points: of those without answers, the
    metrics at their threshold."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    for dashes, (name, scores) in zip(("-", "--", "-."), blind.items(), strict=False):
        axes.plot(*roc_curve(labels, scores)[:2], color=INK, linewidth=0.8, linestyle=dashes, label=name)
    for marker, (name, entry) in zip("^sD", points.items(), strict=False):
        place = 1 - entry["specificity"]["value"], entry["sensitivity"]["value"]
        axes.plot(*place, marker, color=INK, fillstyle="none", markersize=5, label=name)
    for colour, (name, scores) in zip((PATIENT, CONTROL), reversed(list(answers.items())), strict=False):
        axes.plot(*roc_curve(labels, scores)[:2], color=colour, linewidth=1.8, label=name)
    axes.set(xlabel="controls taken for patients", ylabel="patients named", aspect="equal")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="lower right", fontsize=8)


def scores(figure: Figure, labels: Sequence[int], answers: Values, decision: Mapping[str, float]) -> None:
    axes = figure.subplots()
    by_class = [[s for s, y in zip(answers, labels, strict=True) if y == label] for label in (0, 1)]
    bins = [i / 20 for i in range(21)]
    _band(axes, decision, axes.axvspan)
    axes.hist(by_class, bins=bins, stacked=True, color=[CONTROL, PATIENT], label=["controls", "patients"])
    axes.set(xlabel="answer: probability of insufficiency", ylabel="recordings", xlim=(0, 1))
    axes.legend()


def reliability(figure: Figure, bins: Sequence[Facts], decision: Mapping[str, float]) -> None:
    axes = figure.subplots()
    _band(axes, decision, axes.axvspan)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":", label="as promised")
    x = [entry["answer"] for entry in bins]
    axes.errorbar(
        x, *_bars(bins), fmt="o-", color=CONTROL, ecolor=CONTROL, markersize=4, elinewidth=1, label="measured"
    )
    for entry in bins:
        low = entry["value"] < 0.5
        axes.annotate(
            str(entry["recordings"]),
            (entry["answer"], entry["high" if low else "low"]),
            (0, 3 if low else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if low else "top",
            fontsize=8,
        )
    axes.set(xlabel="answer: probability of insufficiency", ylabel="share of patients", xlim=(0, 1), ylim=(-0.06, 1.06))
    axes.legend(loc="upper left", fontsize=8)


def noise(figure: Figure, steps: Mapping[str, Facts]) -> None:
    """steps: "as recorded", "20 dB", ... -> metrics."""
    axes, x = figure.subplots(), range(len(steps))
    for metric, name, colour in (("sensitivity", "patients", PATIENT), ("specificity", "controls", CONTROL)):
        rates = [entry[metric]["value"] for entry in steps.values()]
        axes.plot(x, rates, color=colour, linewidth=1, linestyle="--", label=f"of {name}")
    accuracy = [entry["accuracy"] for entry in steps.values()]
    axes.errorbar(
        x, *_bars(accuracy), fmt="o-", color=INK, ecolor=INK, markersize=4, elinewidth=1, capsize=2, label="of all"
    )
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle=":")
    axes.set_xticks(x, list(steps))
    axes.set(xlabel="speech above ward noise", ylabel="right answers", ylim=(0, 1.03))
    axes.legend(loc="lower left")


def slices(figure: Figure, groups: Mapping[str, Facts], whole: Facts) -> None:
    """groups: `slices.measured`; whole: the accuracy of everybody."""
    axes, names = figure.subplots(), list(groups)
    axes.axvspan(whole["low"], whole["high"], color=QUIET, alpha=0.2, linewidth=0)
    axes.axvline(whole["value"], color=QUIET, linewidth=1)
    for place, entry in enumerate(groups.values()):
        for metric, colour in (("accuracy", INK), ("sensitivity", PATIENT), ("specificity", CONTROL)):
            if metric in entry and (metric == "accuracy" or entry["verdict"] == "one class"):
                value, error = _bars([entry[metric]])
                full = metric == "accuracy"
                marker = "o" if full else "s"
                axes.errorbar(
                    value, [place], xerr=error, fmt=marker, color=colour, fillstyle="full" if full else "none",
                    markersize=5, elinewidth=1.2, capsize=2,
                )  # fmt: skip
        if entry["verdict"] == "too few":
            axes.text(0.02, place, "too few to judge", va="center", fontsize=9, color=INK, alpha=0.75, style="italic")
    counts = [f"{name}\n{groups[name]['controls']} + {groups[name]['patients']}" for name in names]
    axes.set_yticks(range(len(names)), counts, fontsize=9)
    for name, tick in zip(names, axes.get_yticklabels(), strict=True):
        tick.set_alpha(1.0 if groups[name]["verdict"] == "measured" else 0.75)
    axes.set(xlabel="right answers", xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="x", color=QUIET, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def recording(figure: Figure, entry: Facts, features: Mapping[str, float], decision: Mapping[str, float]) -> None:
    """One of `validate`'s misheard recordings: what it sounds like, and what each window was answered."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    seconds = len(entry["signal"]) / SAMPLE_RATE
    above.imshow(
        spectrogram(entry["signal"]), origin="lower", aspect="auto", cmap="magma", interpolation="none",
        extent=(0, seconds, 0, SAMPLE_RATE / 2000), vmin=-DECIBELS, vmax=0,
    )  # fmt: skip
    above.set(ylabel="kHz", yticks=(0, 4, 8))
    _band(below, decision, below.axhspan)
    size, step = features["window_seconds"], features["step_seconds"]
    colour = PATIENT if entry["label"] else CONTROL
    for number, answer in enumerate(entry["windows"]):
        start = max(0.0, min(number * step, seconds - size))
        end = min(start + size, seconds)
        below.plot([start, end], [answer, answer], color=colour, linewidth=1.2, alpha=0.7)
        below.plot([(start + end) / 2], [answer], "o", color=colour, markersize=4)
    below.axhline(decision["threshold"], color=QUIET, linewidth=1)
    below.set(xlabel="seconds", ylabel="answer", xlim=(0, seconds), ylim=(-0.05, 1.05), yticks=(0, 0.5, 1))


def spectrogram(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T,) -> (BANDS, columns) in dB below the loudest, in shades of `STEP` dB.

    >>> spectrogram(np.zeros(16_000, np.float32)).shape
    (48, 32)
    """
    size = 2 * COLUMN
    padded = np.pad(np.asarray(signal, float), (0, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:-size:COLUMN]  # (columns, size)
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size))))  # (columns, size / 2 + 1)
    edges = np.linspace(0, power.shape[1] - 1, BANDS + 1).astype(int)
    bands = np.add.reduceat(power, edges[:-1], axis=1).T  # (BANDS, columns)
    decibels = 10 * np.log10(bands / max(bands.max(), 1e-12) + 1e-12)
    return np.clip(np.round(decibels / STEP) * STEP, -DECIBELS, 0)


def _bars(entries: Sequence[Facts]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above."""
    below = [max(0.0, entry["value"] - entry["low"]) for entry in entries]
    above = [max(0.0, entry["high"] - entry["value"]) for entry in entries]
    return [entry["value"] for entry in entries], [below, above]


def _band(axes: Axes, decision: Mapping[str, float], span: Callable[..., Any]) -> None:
    low, high = (decision["threshold"] + sign * decision["band"] for sign in (-1, 1))
    span(low, high, color=QUIET, alpha=0.3, linewidth=0, label="inconclusive")
