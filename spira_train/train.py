"""Train the network on the partitions of a run: SPIRA v1's recipe, label-blind, resumable to the same bytes."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spira_train.config import Config
from spira_train.dataset import Dataset, load, window_of
from spira_train.featurise import finished, manifest
from spira_train.model import build, parameters
from spira_train.outcome import BadInput, NothingToDo
from spira_train.progress import say
from spira_train.rng import Random
from spira_train.step import fingerprint, perform
from spira_train.store import Lake, local_lake, read_report, write_atomic
from spira_train.tracking import Tracker

LIBRARIES = ("torch", "numpy")
RECORDINGS = "recordings.json"  # what a version was trained on: needed when a subject withdraws


def run(*, run: Path, lake: Lake, config: Config, mlflow: str | None = None) -> dict[str, Any]:
    """Write `train/` of a run: model.safetensors, model.json, curves.json, recordings.json.

    Raises `NothingToDo` where a newer partition has landed and the run does not ask to train for each.
    """
    device = choose_device(config.train.device)
    folders = finished(lake, config, window_of(config, lake.landed()))
    inputs = {f"features/{key}": report["fingerprint"] for key, (_, report) in folders.items()}
    parts = {name: getattr(config, name).model_dump(mode="json") for name in ("data", "features", "model", "train")}
    choices = parts | {
        "seed": config.seed,
        "threads": config.threads,
        "decision": config.decision.model_dump(mode="json"),
        "device": device.type,
    }
    identity = fingerprint("train", module="train", config=choices, inputs=inputs, libraries=LIBRARIES)
    fs, destination = local_lake(run / "train")
    done = read_report(fs, destination)
    newest = max(lake.landed(), default=config.partition)
    if newest > config.partition and not config.train_each and not (done and done["fingerprint"] == identity):
        raise NothingToDo(f"partition {newest} has landed since; the newest trains for all (train_each asks for more)")

    checkpoint = run / "checkpoint" / f"{identity[:16]}.safetensors"

    def work(folder: Path) -> dict[str, Any]:
        splits = load(lake, [path for path, _ in folders.values()], config)
        tracker = Tracker(mlflow, run, config)
        state = fit(splits["train"], splits["validation"], config, device, checkpoint, tracker)
        (folder / "model.safetensors").write_bytes(save(state.best))
        description = describe(config, splits["train"], state) | decide(config, splits["validation"], state)
        (folder / "model.json").write_text(json.dumps(description, indent=1))
        (folder / "curves.json").write_text(json.dumps(state.curves, indent=1, allow_nan=False))
        (folder / RECORDINGS).write_text(json.dumps(trained_on(lake, list(folders), splits), indent=1, sort_keys=True))
        tracker.finish(folder)
        return {
            "recordings": {name: len(split) for name, split in splits.items()},
            "windows": {name: int(split.offsets[-1]) for name, split in splits.items()},
            "partitions": list(folders),
            "epochs": len(state.curves["epoch"]),
            "best_epoch": state.best_epoch,
            "device": str(device),
            "simulated": lake.exists("DATA_CARD.md"),
        }

    report = perform("train", identity, fs, destination, work, inputs)
    checkpoint.unlink(missing_ok=True)
    return report


def trained_on(lake: Lake, partitions: Sequence[str], splits: Mapping[str, Dataset]) -> dict[str, str]:
    """Identity of every recording that shaped the model -> SHA-256 of the bytes in which it was delivered."""
    used = {recording for split in splits.values() for recording in split.recordings}
    rows = [row for key in partitions for row in manifest(lake, key)]
    return {row["recording"]: row["source_digest"] for row in rows if row["recording"] in used}


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where it is; asking for CUDA without one is an error."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise BadInput("train.device: is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    if wanted == "auto" and not available:
        say("train: no GPU here, so on the CPU")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def noam(step: int, warmup: int) -> float:
    """Factor on the learning rate at `step` (from 1): rises to 1 at `warmup`, then falls as 1 / sqrt(step).

    >>> noam(1000, 1000), noam(4000, 1000), noam(10, 1000)
    (1.0, 0.5, 0.01)
    """
    return math.sqrt(warmup) * min(step * warmup**-1.5, step**-0.5)


class State:
    """Everything that training carries from one epoch to the next; saved after each, so a kill costs one epoch."""

    def __init__(self, config: Config, frames: int, coefficients: int, device: torch.device):
        torch.manual_seed(Random(config.seed).integer("weights"))
        self.network = build(
            config.model.name, frames=frames, coefficients=coefficients, dropout=config.model.dropout
        ).to(device)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
        )
        self.steps = 0
        # a moving average of the weights answers in their place, where the recipe asks for one
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.curves: dict[str, list[float]] = {"epoch": [], "loss": [], "validation_loss": [], "accuracy": []}

    def save(self, file: Path) -> None:
        """Write weights, best weights, moments and curves as one safetensors file, atomically."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        moments = self.optimiser.state_dict()["state"]
        tensors |= {f"moment.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
        facts = {"best_epoch": self.best_epoch, "curves": self.curves, "steps": self.steps}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_atomic(file, save(tensors, metadata={"state": json.dumps(facts)}))

    def restore(self, file: Path) -> None:
        """Take up where `save` left off."""
        with safe_open(file, framework="pt") as stored:
            facts = json.loads(stored.metadata()["state"])
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "average": {}, "moment": {}}
        for key, value in tensors.items():
            group, _, name = key.partition(".")
            groups[group][name] = value
        self.network.load_state_dict(groups["network"])
        self.best = groups["best"]
        self.average = {k: v.to(self.average[k].device) for k, v in groups["average"].items()}
        self.best_epoch, self.curves = facts["best_epoch"], facts["curves"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["moment"].items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        self.steps = facts["steps"]

    def follow(self, decay: float) -> None:
        """Move the average towards the weights; in the first steps faster, so that it forgets the random start."""
        decay = min(decay, self.steps / (self.steps + 10))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def fit(
    train: Dataset, validation: Dataset, config: Config, device: torch.device, checkpoint: Path, tracker: Tracker
) -> State:
    """Train until the epochs or the patience run out; the best weights by validation loss are in `State.best`."""
    torch.set_num_threads(config.threads)
    data, held = torch.from_numpy(train.variants).to(device), torch.from_numpy(validation.variants).to(device)
    state = State(config, data.shape[2], data.shape[3], device)
    if checkpoint.exists():
        state.restore(checkpoint)
        say(f"train: taking up after epoch {len(state.curves['epoch'])}")
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(len(state.curves["epoch"]) + 1, config.train.epochs + 1):
        if config.train.patience and epoch - 1 - state.best_epoch >= config.train.patience:
            break
        # Each epoch's draws depend on the seed and its number alone: a resumed training repeats them.
        torch.manual_seed(Random(config.seed).integer("dropout", epoch))
        masks = Random(config.seed).stream("masks", epoch)
        state.network.train()
        losses = []
        for rows, variants, labels in batches(train, config, epoch):
            windows = data[torch.from_numpy(variants), torch.from_numpy(rows)][:, None]  # (W, 1, frames, coefficients)
            hold(windows, config.train.time_masks, config.train.mask_frames, masks)
            wanted = torch.from_numpy(labels).to(device)  # (W,)
            if config.train.mixup:
                windows, wanted = mix(windows, wanted, config.train.mixup, masks)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.mixed_precision):
                logits = state.network(windows)  # (W,)
            loss = loss_of(logits.float(), wanted)
            state.steps += 1
            for group in state.optimiser.param_groups:
                group["lr"] = config.train.learning_rate * noam(state.steps, config.train.warmup_steps)
            state.optimiser.zero_grad()
            loss.backward()
            state.optimiser.step()
            state.follow(config.train.average)
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise BadInput(f"training diverged: the loss of epoch {epoch} is {mean}; lower train.learning_rate")
        weights = {k: v.clone() for k, v in state.network.state_dict().items()}
        state.network.load_state_dict(state.average)
        held_loss, accuracy = evaluate(state.network, held, validation)
        state.network.load_state_dict(weights)
        if not state.best or held_loss < state.curves["validation_loss"][state.best_epoch - 1]:
            state.best_epoch = epoch
            state.best = {k: v.detach().cpu().clone() for k, v in state.average.items()}
        point = {"epoch": epoch, "loss": mean, "validation_loss": held_loss, "accuracy": accuracy}
        for name, value in point.items():
            state.curves[name].append(value)
        state.save(checkpoint)
        tracker.log(epoch, {k: v for k, v in point.items() if k != "epoch"})
        star = " *" if state.best_epoch == epoch else ""
        say(
            f"train: epoch {epoch:3d} of {config.train.epochs}  loss {mean:.4f}  validation loss {held_loss:.4f}  "
            f"accuracy {accuracy:.3f}{star}"
        )
    return state


def hold(windows: Tensor, count: int, longest: int, rng: np.random.Generator) -> None:
    """SpecAugment's time masks, in place: `count` stretches of up to `longest` frames repeat their first frame.

    windows: (W, 1, frames, coefficients), a copy of its own. A held frame, unlike zeros, is a sound that exists.
    """
    for _ in range(count):
        start = int(rng.integers(windows.shape[2]))
        windows[:, :, start : start + 1 + int(rng.integers(longest))] = windows[:, :, start : start + 1].clone()


def mix(windows: Tensor, labels: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018): each window and its label become a blend with those of another of the batch.

    windows: (W, 1, frames, coefficients); labels: (W,). Each window draws its own share, from Beta(alpha, alpha).
    """
    share = torch.from_numpy(rng.beta(alpha, alpha, len(windows)).astype(np.float32)).to(windows.device)  # (W,)
    other = torch.from_numpy(rng.permutation(len(windows))).to(windows.device)  # (W,)
    blend = share[:, None, None, None]  # (W, 1, 1, 1)
    return blend * windows + (1 - blend) * windows[other], share * labels + (1 - share) * labels[other]


@torch.inference_mode()
def evaluate(network: nn.Module, held: Tensor, validation: Dataset) -> tuple[float, float]:
    """(loss, accuracy) by recording of the validation split: clean, and one noisy variant, as the gate will ask.

    held: (1 + V, N, frames, coefficients).
    """
    heard = answers(network, held, validation)  # (2, R)
    labels = torch.from_numpy(validation.labels).to(held.device).expand_as(heard)  # (2, R)
    loss = nn.functional.binary_cross_entropy(heard, labels)
    return float(loss), float(((heard > 0.5) == (labels > 0.5)).float().mean())


@torch.inference_mode()
def answers(network: nn.Module, held: Tensor, validation: Dataset) -> Tensor:
    """Probability of each recording of the validation split, clean and in one noisy variant: (2, R), or (1, R).

    held: (1 + V, N, frames, coefficients).
    """
    network.eval()
    owner = torch.from_numpy(np.repeat(np.arange(len(validation)), np.diff(validation.offsets))).to(held.device)  # (N,)
    counts = torch.bincount(owner, minlength=len(validation))  # (R,)
    heard = []
    for variant in held[:2]:
        logits = torch.cat([network(part[:, None]) for part in variant.split(32)])  # (N,)
        sums = torch.zeros(len(validation), device=held.device).index_add_(0, owner, torch.sigmoid(logits))  # (R,)
        heard.append((sums / counts).clamp(1e-6, 1 - 1e-6))
    return torch.stack(heard)  # (2, R)


def describe(config: Config, train: Dataset, state: State) -> dict[str, Any]:
    """What must travel with the weights: enough to rebuild the network, its features and its decision."""
    return {
        "network": {
            "name": config.model.name,
            "frames": int(train.variants.shape[2]),
            "coefficients": int(train.variants.shape[3]),
            "dropout": config.model.dropout,
        },
        "features": config.features.model_dump(mode="json"),
        "parameters": parameters(state.network),
        "epoch": state.best_epoch,
        "partition": config.partition,
        "seed": config.seed,
    }


def decide(config: Config, validation: Dataset, state: State) -> dict[str, Any]:
    """Temperature and inconclusive band of the best weights, fitted on the validation split, clean and in noise."""
    from spira_train import calibration  # a second of imports, which a cached step does without

    network, rule = state.network.cpu(), config.decision
    network.load_state_dict(state.best)
    heard = answers(network, torch.from_numpy(validation.variants[:2]), validation).double().numpy()  # (2, R)
    labels = np.tile(validation.labels, len(heard)).astype(int)  # (2 R,)
    temperature = round(calibration.temperature(labels, heard.ravel()), 4)
    sure = calibration.calibrated(heard.ravel(), temperature)  # (2 R,)
    limits = {"least": rule.band, "most": rule.max_band, "accuracy": rule.accuracy}
    band = calibration.band(labels, sure, rule.threshold, **limits)
    return {"calibration": {"temperature": temperature}, "decision": {"threshold": rule.threshold, "band": band}}


def batches(train: Dataset, config: Config, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of one epoch: (window rows (W,), variant of each (W,), label of each (W,)).

    The variant of a recording is drawn without a look at its label.
    """
    random = Random(config.seed)
    order = random.stream("order", epoch).permutation(len(train))
    draw = random.stream("variant", epoch)
    count = train.variants.shape[0] - 1
    noisy = draw.random(len(train)) < config.train.noisy_share
    variant = np.where(noisy & (count > 0), 1 + draw.integers(max(count, 1), size=len(train)), 0)
    for start in range(0, len(train), config.train.batch):
        picked = order[start : start + config.train.batch]
        rows, owner = train.rows(picked)
        yield rows, variant[picked][owner], train.labels[picked][owner]
