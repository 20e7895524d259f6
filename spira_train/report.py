"""The report of a run: one self-contained HTML page, verdict first."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from spira_train.config import Config

TEMPLATE = Path(__file__).with_name("report.html.j2")
NAMES = {
    "clean": "Clean",
    "ward_noise": "Ward noise on everyone",
    "ward_noise_controls": "Ward noise on controls only",
    "ward_noise_patients": "Ward noise on patients only",
}
COLUMNS = ("accuracy", "f1", "auc", "sensitivity", "specificity")
INK, PATIENT, CONTROL, QUIET = "#25303b", "#b8442f", "#2f6f8f", "#9aa5b1"


def render(
    config: Config,
    trained: Mapping[str, Any],
    metrics: Mapping[str, Any],
    verdict: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[float]],
    curves: Mapping[str, Sequence[float]],
    decision: Mapping[str, float],
) -> str:
    """The page as HTML; the same inputs give the same bytes."""
    labels = [row["label"] for row in rows]
    figures = {"Learning curves": _figure(lambda axes: _curves(axes, curves, trained["summary"]["best_epoch"]))}
    if len(set(labels)) == 2:
        figures["ROC"] = _figure(lambda axes: _roc(axes, labels, answers))
        figures["Answers, clean"] = _figure(lambda axes: _scores(axes, labels, answers["clean"], decision))
        figures["Answers, in ward noise"] = _figure(lambda axes: _scores(axes, labels, answers["noisy"], decision))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        trained=trained,
        metrics=metrics,
        verdict=verdict,
        figures=figures,
        names=NAMES,
        columns=COLUMNS,
        decision=decision,
        settings=config.model_dump(mode="json"),
    )


def _figure(draw: Callable[[Axes], None]) -> str:
    style: Any = {"svg.hashsalt": "spira", "svg.fonttype": "path", "font.size": 9, "axes.edgecolor": QUIET}
    style |= {"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False}):
        figure = Figure(figsize=(4.2, 3.1), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)


def _curves(axes: Axes, curves: Mapping[str, Sequence[float]], best: int) -> None:
    axes.plot(curves["epoch"], curves["loss"], color=QUIET, label="training")
    axes.plot(curves["epoch"], curves["validation_loss"], color=CONTROL, label="validation")
    axes.axvline(best, color=PATIENT, linewidth=1, linestyle=":", label=f"kept: epoch {best}")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)


def _roc(axes: Axes, labels: Sequence[int], answers: Mapping[str, Sequence[float]]) -> None:
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    for name, colour, text in (("clean", CONTROL, "clean"), ("noisy", PATIENT, "in ward noise")):
        false_positive, true_positive, _ = roc_curve(labels, answers[name])
        axes.plot(false_positive, true_positive, color=colour, label=text)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(frameon=False, loc="lower right")


def _scores(axes: Axes, labels: Sequence[int], scores: Sequence[float], decision: Mapping[str, float]) -> None:
    by_class = [[s for s, y in zip(scores, labels, strict=True) if y == label] for label in (0, 1)]
    bins = [i / 20 for i in range(21)]
    axes.hist(by_class, bins=bins, stacked=True, color=[CONTROL, PATIENT], label=["controls", "patients"])
    low, high = (decision["threshold"] + sign * decision["band"] for sign in (-1, 1))
    axes.axvspan(low, high, color=QUIET, alpha=0.3, linewidth=0, label="inconclusive")
    axes.set(xlabel="probability of insufficiency", ylabel="recordings", xlim=(0, 1))
    axes.legend(frameon=False)
