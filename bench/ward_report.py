"""Table and figures of `bench.ward_study`, made from its stored results alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spira_train.figures import CONTROL, INK, PATIENT, QUIET
from spira_train.metrics import Sample
from spira_train.rng import Random

# v1's experiments: noises in controls, in patients
V1 = {"3/3": (3, 3), "none": (0, 0), "1/0": (1, 0), "4/3": (4, 3), "2/2": (2, 2)}
OURS = "ours"
DEFAULT = "default"
# config/default.yaml with one ingredient taken away, or with one that it does without
ABLATION: dict[str, dict[str, Any]] = {
    "no clean draws": {"train.noisy_share": 1},
    "no average of weights": {"train.average": 0},
    "no time masks": {"train.time_masks": 0},
    "mixup 0.2": {"train.mixup": 0.2},
    "network spira_small": {"model.name": "spira_small"},
    "3 crops, by peak": {"noise.law": "peak", "noise.vary": False},
    "no devices": {"noise.channel": 0},
    "no noise": {"noise.variants": 0},
    "v1's features": {
        "features.window_seconds": 4, "features.step_seconds": 1, "features.n_mels": 40, "features.n_mfcc": 40,
        "features.n_fft": 1200, "features.win_length": 400, "features.hop_length": 160,
    },
}  # fmt: skip
SNRS = (20, 10, 5, 0)  # dB
ANSWERS = ("clean", "ward", *(f"{snr} dB" for snr in SNRS))
CURVES = ("none", "3/3")  # v1's rows that are asked in every condition; the others clean and in the ward only
CONDITIONS = {"clean": "clean", "controls": "ward on controls", "ward": "ward on everyone"}
# Casanova et al. 2021, experiments 1.3, 2.3, 3.3, 3.5, 3.6: mean and sd of clean, of noise on controls
PUBLISHED = {
    "v1 none": ((97.84, 0.53), (50.93, 0.93)), "v1 1/0": ((66.05, 3.74), (84.88, 2.98)),
    "v1 2/2": ((88.58, 0.53), (85.19, 0.93)), "v1 3/3": ((90.43, 2.98), (87.04, 0.93)),
    "v1 4/3": ((62.35, 8.35), (75.00, 2.45)),
}  # fmt: skip
DRAWS = 2000


def read(folder: Path) -> list[dict[str, Any]]:
    """The finished trainings."""
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@dataclass(frozen=True)
class Accuracy:
    """Of one row in one condition, in per cent: of each seed, and the mean of all with its 95 % interval."""

    seeds: list[float]
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f" ± {np.std(self.seeds, ddof=1):.1f}" if len(self.seeds) > 1 else ""
        return f"{self.mean:.1f}{spread} [{self.low:.1f}, {self.high:.1f}]"


def correct(line: Mapping[str, Any], condition: str) -> np.ndarray:
    """1 for each recording (R,) that a training answered rightly, else 0; `KeyError` where it was not asked."""
    labels, answers = np.array(line["labels"]), line["answers"]
    if condition == "controls":
        given = np.where(labels == 0, answers["ward"], answers["clean"])  # (R,)
    else:
        given = np.array(answers[condition])  # (R,)
    return ((given > 0.5) == (labels == 1)).astype(float)


def measure(lines: Sequence[Mapping[str, Any]], condition: str) -> Accuracy | None:
    """The interval resamples both what was drawn: seeds, and within each class subjects."""
    labels = np.array(lines[0]["labels"])
    try:
        right = np.array([correct(line, condition) for line in lines])  # (S, R)
    except KeyError:
        return None  # this row was not asked
    rng = Random(0).stream("bootstrap")  # the same draws for every row
    sample = Sample.of(labels.tolist(), lines[0]["subjects"], DRAWS, rng)
    seeds = rng.integers(len(right), size=(DRAWS, len(right)))
    drawn = (sample.weights * right[seeds].mean(1)).sum(1) / sample.weights.sum(1)  # (D,)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Accuracy([100 * float(one.mean()) for one in right], *(100 * float(v) for v in (right.mean(), low, high)))


def across(
    lines: Sequence[Mapping[str, Any]], condition: str, less: Sequence[Mapping[str, Any]] | None = None
) -> Accuracy:
    """Of one row trained once on each lake: a line a lake. The interval resamples lakes, and within each its subjects.

    less: another row's lines on the same lakes; the result is then how far this row is ahead of it, in points, pair by
    pair: both answer the same draws.
    """
    each, draws = [], []
    for number, line in enumerate(lines):
        right = correct(line, condition)  # (R,)
        if less is not None:
            if less[number]["subjects"] != line["subjects"]:
                raise ValueError(f"lake {line['seed']}: the two rows answered different recordings")
            right = right - correct(less[number], condition)
        rng = Random(line["seed"]).stream("bootstrap")  # the same draws for every row of a lake
        sample = Sample.of(line["labels"], line["subjects"], DRAWS, rng)
        each.append(100 * float(right.mean()))
        draws.append(100 * (sample.weights @ right) / sample.weights.sum(1))  # (D,)
    rng = Random(0).stream("lakes")
    shape = (DRAWS, len(lines))
    drawn = np.array(draws)[rng.integers(len(lines), size=shape), rng.integers(DRAWS, size=shape)].mean(1)  # (D,)
    low, high = (float(v) for v in np.quantile(drawn, (0.025, 0.975)))
    return Accuracy(each, float(np.mean(each)), low, high)


def by_recipe(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished trainings of `--lakes`: a recipe's name -> a line a lake; names and lakes in order."""
    found = [line for place in sorted(folder.iterdir()) if place.is_dir() for line in read(place)]
    names = sorted({line["name"] for line in found})
    return {name: sorted((x for x in found if x["name"] == name), key=lambda x: x["seed"]) for name in names}


def lakes_report(folder: Path, figure: Path) -> str:
    """Draw the figure of `--lakes` and return its tables; all from the results.jsonl of each lake's folder."""
    of = {name: lines for name, lines in by_recipe(folder).items() if name not in ABLATION}
    names, found = list(of), [line for lines in of.values() for line in lines]
    conditions = {**CONDITIONS, **{name: name for name in ANSWERS[2:]}}
    text = ["| recipe | parameters | lakes | " + " | ".join(conditions.values()) + " |",
            "|---|" + "---|" * (len(conditions) + 2)]  # fmt: skip
    for name, lines in of.items():
        cells = [name, f"{lines[0]['parameters']:,}", len(lines), *(across(lines, c) for c in conditions)]
        text.append("| " + " | ".join(map(str, cells)) + " |")
    base = next((name for name in names if name.startswith("v1 ")), None)
    for name in (n for n in names if base and n != base and _both(of[n], of[base])):
        mine, theirs = ([x for x in of[n] if x["seed"] in _both(of[name], of[base])] for n in (name, base))
        ahead = [across(mine, c, theirs) for c in conditions]
        apart = [_yes(across(mine, c).low > across(theirs, c).high) for c in conditions]
        text.append("| " + " | ".join(map(str, [f"{name} less {base}, paired", "", len(mine), *ahead])) + " |")
        text.append("| " + " | ".join([f"{name} better, intervals apart", "", str(len(mine)), *apart]) + " |")
    text += ["", "| lake | " + " | ".join(f"{n}: clean, ward on controls, on everyone" for n in names) + " |",
             "|---|" + "---|" * len(names)]  # fmt: skip
    for lake in sorted({line["seed"] for line in found}):
        here = [next((x for x in of[name] if x["seed"] == lake), None) for name in names]
        cells = [", ".join(f"{100 * correct(x, c).mean():.1f}" for c in CONDITIONS) if x else "" for x in here]
        text.append("| " + " | ".join([str(lake), *cells]) + " |")
    seconds = {name: np.mean([line["cpu_seconds"] for line in lines]) for name, lines in of.items()}
    text += ["", "CPU seconds a training: " + ", ".join(f"{name} {s:.0f}" for name, s in seconds.items())]
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(figure, lambda axes: by_lake(axes, of))
    return "\n".join(text)


def ablation_report(folder: Path, figure: Path) -> str:
    """Draw the figure of `--ablation` and return its table: each changed recipe, how far ahead of the default it is."""
    of = by_recipe(folder)
    whole = {line["seed"]: line for line in of[DEFAULT]}
    heads = " | ".join(f"{condition}, and less the default" for condition in CONDITIONS.values())
    text = [f"| changed | lakes | {heads} |", "|---|" + "---|" * (len(CONDITIONS) + 1)]
    ahead: dict[str, dict[str, Accuracy]] = {}
    for name in (n for n in ABLATION if n in of):
        mine = [line for line in of[name] if line["seed"] in whole]
        theirs = [whole[line["seed"]] for line in mine]
        ahead[name] = {c: across(mine, c, theirs) for c in CONDITIONS}
        cells = [f"{across(mine, c).mean:.1f}, {gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
                 for c, gap in ahead[name].items()]  # fmt: skip
        text.append("| " + " | ".join([name, str(len(mine)), *cells]) + " |")
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(figure, lambda axes: differences(axes, ahead))
    return "\n".join(text)


def differences(axes: Axes, ahead: Mapping[str, Mapping[str, Accuracy]]) -> None:
    """How far each changed recipe is ahead of the default: its interval and each lake."""
    for place, (name, colour) in enumerate(zip(CONDITIONS, (CONTROL, QUIET, PATIENT), strict=True)):
        for y, one in enumerate(row[name] for row in ahead.values()):
            height = y + 0.22 * (place - 1)
            axes.plot([one.low, one.high], [height] * 2, color=colour, linewidth=2, alpha=0.6)
            axes.plot(one.seeds, [height] * len(one.seeds), ".", color=colour, alpha=0.4, markersize=4)
            axes.plot(one.mean, height, "o", color=colour, markersize=5, label=None if y else CONDITIONS[name])
    axes.axvline(0, color=QUIET, linewidth=1, linestyle=":")
    axes.set(yticks=range(len(ahead)), yticklabels=list(ahead), xlabel="accuracy less the default's, points")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))


def _both(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> set[int]:
    """The lakes that both rows were trained on."""
    return {line["seed"] for line in one} & {line["seed"] for line in other}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def report(folder: Path, pictures: Path) -> str:
    """Draw both figures and return the tables, in Markdown; all from results.jsonl."""
    lines = read(folder)
    of = {name: [line for line in lines if line["name"] == name] for name in dict.fromkeys(x["name"] for x in lines)}
    table: dict[str, dict[str, Any]] = {
        name: {c: measure(some, c) for c in (*CONDITIONS, *ANSWERS[2:])} for name, some in of.items()
    }
    text = ["| recipe | parameters | seeds | " + " | ".join(CONDITIONS.values()) + " | published clean, noisy |",
            "|---|" + "---|" * (len(CONDITIONS) + 3)]  # fmt: skip
    for name, row in table.items():
        clean, noisy = PUBLISHED.get(name, (None, None))
        known = f"{clean[0]:.1f} ± {clean[1]:.1f}, {noisy[0]:.1f} ± {noisy[1]:.1f}" if clean and noisy else ""
        cells = [name, f"{of[name][0]['parameters']:,}", len(of[name]), *(row[c] for c in CONDITIONS), known]
        text.append("| " + " | ".join(map(str, cells)) + " |")
    best = max((n for n in table if n.startswith("v1 ")), key=lambda n: table[n]["ward"].mean, default=None)
    if OURS in table and best:
        text += [
            "",
            f"| condition | ours | {best}, v1's best in the ward here | ours better, intervals apart |",
            "|---|---|---|---|",
        ]
        for condition in (*CONDITIONS, *ANSWERS[2:]):
            ours, theirs = table[OURS][condition], table[best][condition]
            if ours and theirs:
                apart = str(ours.low > theirs.high).lower()
                text.append(f"| {CONDITIONS.get(condition, condition)} | {ours} | {theirs} | {apart} |")
    seconds = {name: np.mean([line["cpu_seconds"] for line in some]) for name, some in of.items()}
    text += ["", "CPU seconds a training: " + ", ".join(f"{name} {s:.0f}" for name, s in seconds.items())]
    pictures.mkdir(parents=True, exist_ok=True)
    draw(pictures / "study-collapse.svg", lambda axes: collapse(axes, table))
    draw(pictures / "study-robustness.svg", lambda axes: robustness(axes, table))
    return "\n".join(text)


def draw(file: Path, paint: Callable[[Axes], None]) -> None:
    """A figure as SVG; the same results give the same bytes."""
    style: Any = {"svg.hashsalt": "spira", "svg.fonttype": "path", "font.size": 9, "axes.edgecolor": QUIET}
    style |= {"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK}
    with matplotlib.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        paint(figure.subplots())
        figure.savefig(file, facecolor="white", metadata={"Date": None, "Creator": None})


def collapse(axes: Axes, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Clean against noisy for every recipe, the published values hollow beside."""
    names = [name for name in table if name not in ABLATION]
    names.sort(key=lambda name: (name == OURS, list(V1).index(name[3:]) if name != OURS else 0))
    for shift, condition, colour in ((-0.17, "clean", CONTROL), (0.17, "controls", PATIENT)):
        for x, name in enumerate(names):
            one = table[name][condition]
            axes.plot([x + shift] * 2, [one.low, one.high], color=colour, linewidth=2, alpha=0.5)
            axes.plot(np.full(len(one.seeds), x + shift), one.seeds, ".", color=colour, alpha=0.4, markersize=4)
            axes.plot(x + shift, one.mean, "o", color=colour, markersize=6)
            if name in PUBLISHED:
                known = PUBLISHED[name][condition == "controls"][0]
                axes.plot(x + shift + 0.13, known, "o", markerfacecolor="white", color=colour, markersize=6)
    axes.axhline(50, color=QUIET, linewidth=1, linestyle=":")
    axes.set(xticks=range(len(names)), xticklabels=names, ylabel="accuracy, %", ylim=(40, 101))
    marks = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in (CONTROL, PATIENT)]
    hollow = Line2D([], [], marker="o", linestyle="", color=INK, markerfacecolor="white")
    axes.legend([*marks, hollow], ["clean", "ward noise on controls", "published (SPIRA's own recordings)"],
                frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip


def robustness(axes: Axes, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy against the ratio of speech to ward noise, on everyone, from clean at the left."""
    for name, colour, mark in (("v1 none", QUIET, "s"), ("v1 3/3", CONTROL, "o"), (OURS, PATIENT, "D")):
        if name in table:
            points = [table[name][c] for c in ("clean", *ANSWERS[2:])]
            axes.fill_between(
                range(5), [p.low for p in points], [p.high for p in points], color=colour, alpha=0.15, lw=0
            )
            axes.plot(range(5), [p.mean for p in points], marker=mark, color=colour, label=name)
    axes.axhline(50, color=QUIET, linewidth=1, linestyle=":")
    axes.set(xticks=range(5), xticklabels=["clean", *ANSWERS[2:]], ylabel="accuracy, %", ylim=(40, 101),
             xlabel="speech over unseen ward noise, on everyone")  # fmt: skip
    axes.legend(frameon=False, loc="lower left")


def by_lake(axes: Axes, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Accuracy of each row on each lake, a line a lake and condition; at the right the mean with its interval."""
    for name, colour, shift in zip(of, (PATIENT, QUIET, CONTROL), (-0.15, 0.0, 0.15), strict=False):
        for place, condition in enumerate(CONDITIONS):
            one = across(of[name], condition)
            label = name if place == 0 else None
            axes.plot(place + shift + np.linspace(-0.05, 0.05, len(one.seeds)), one.seeds, ".", color=colour, alpha=0.5)
            axes.plot([place + shift] * 2, [one.low, one.high], color=colour, linewidth=2, alpha=0.6)
            axes.plot(place + shift, one.mean, "o", color=colour, markersize=6, label=label)
    axes.set(xticks=range(len(CONDITIONS)), xticklabels=list(CONDITIONS.values()), ylabel="accuracy, %")
    axes.set_ylim(top=101)
    axes.legend(frameon=False, loc="lower left")
