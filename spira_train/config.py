"""`Config`: every choice of a run, validated once, frozen afterwards.

YAML files are merged in order (`config/default.yaml`, then a preset), then overrides `section.field=value` from
the DAG's params or the command line. Places and addresses (lake, runs, MLflow, TorchServe) are not
configuration: they are options of each command, so that the same run can be carried to another machine.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spira_train.outcome import BadInput

CONFIG_DIR = Path(__file__).resolve().parent.parent / "config"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    history_days: Annotated[int, Field(ge=0, le=36500)] = Field(
        0, description="Train on the partitions of the last so many days; 0 means all of them"
    )
    min_subjects: Annotated[int, Field(ge=1)] = Field(
        3, description="Fewest subjects of each class that training and validation splits must hold"
    )


class ExtractConfig(Section):
    min_seconds: Annotated[float, Field(gt=0, le=60)] = Field(0.5, description="Shorter recordings are refused")
    max_seconds: Annotated[float, Field(gt=0, le=600)] = Field(120.0, description="Longer recordings are refused")
    silence_dbfs: Annotated[float, Field(ge=-120, le=0)] = Field(
        -60.0, description="Recordings with a lower RMS level (dB of full scale) are refused as silent"
    )
    max_clipped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.02, description="Recordings with a larger fraction of samples at full scale are refused as clipped"
    )
    min_accepted: Annotated[int, Field(ge=1)] = Field(
        4, description="A partition with fewer good recordings is refused as a whole"
    )
    min_accepted_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="A partition with a smaller fraction of good recordings is refused as a whole"
    )


class SplitConfig(Section):
    salt: Annotated[str, Field(min_length=1)] = Field(
        "spira",
        description="Salt of the subject digest that decides the split; changing it unfreezes the test set",
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Share of subjects for validation")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.25, description="Share of subjects for the frozen test set")

    @model_validator(mode="after")
    def leaves_something_to_train_on(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must stay below 1, or nothing is left to train on")
        return self


class NoiseConfig(Section):
    inserts: Annotated[int, Field(ge=0, le=10)] = Field(
        3, description="Ward-noise crops added to each noisy variant, the same number for both classes"
    )
    variants: Annotated[int, Field(ge=0, le=32)] = Field(
        3, description="Seeded noisy variants of each recording beside the clean one"
    )
    # Limits measured by SPIRA v1 in the pauses of five patient recordings.
    min_peak: Annotated[float, Field(gt=0, le=1)] = Field(0.033474047, description="Lowest peak of a noise crop")
    max_peak: Annotated[float, Field(gt=0, le=1)] = Field(0.19233719, description="Highest peak of a noise crop")
    vary: bool = Field(False, description="Draw the number of crops from 1 to `inserts` for each variant")
    law: Literal["peak", "snr"] = Field(
        "peak", description="What scales a crop: its peak, as in SPIRA v1, or the ratio of speech to noise"
    )
    min_snr_db: Annotated[float, Field(ge=-20, le=60)] = Field(0.0, description="Lowest speech-to-noise ratio (snr)")
    max_snr_db: Annotated[float, Field(ge=-20, le=60)] = Field(20.0, description="Highest speech-to-noise ratio (snr)")
    channel: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of noisy variants heard through a random device: level, band and tilt"
    )
    crowd: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of noise crops that are three to six other training recordings, of any label, at once"
    )
    reshape: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of noise crops changed at random: speed, colour, direction"
    )
    test: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="Share of noise tracks kept for the gate, never used in training"
    )

    @model_validator(mode="after")
    def peaks_are_ordered(self) -> "NoiseConfig":
        if self.min_peak > self.max_peak:
            raise ValueError(f"min_peak {self.min_peak} must not exceed max_peak {self.max_peak}")
        if self.min_snr_db > self.max_snr_db:
            raise ValueError(f"min_snr_db {self.min_snr_db} must not exceed max_snr_db {self.max_snr_db}")
        return self

    def insertion(self) -> dict[str, Any]:
        """The law of insertion, as keyword arguments of `noise.insert`, without what only training adds."""
        names = {"inserts", "vary", "law", "min_peak", "max_peak", "min_snr_db", "max_snr_db"}
        return self.model_dump(include=names)


class FeaturesConfig(Section):
    """SPIRA v1's values (`conf.audio` of its best configuration, exp3.5)."""

    sample_rate: Literal[16000] = Field(16000, description="Hz; recordings are brought to it once, by extract")
    window_seconds: Annotated[float, Field(ge=1, le=30)] = Field(4.0, description="Length of a window")
    step_seconds: Annotated[float, Field(gt=0, le=30)] = Field(1.0, description="Distance between window starts")
    n_mfcc: Annotated[int, Field(ge=1, le=256)] = Field(40, description="MFCC coefficients")
    n_mels: Annotated[int, Field(ge=1, le=256)] = Field(40, description="Mel bands")
    n_fft: Annotated[int, Field(ge=64, le=8192)] = Field(1200, description="FFT length in samples")
    win_length: Annotated[int, Field(ge=16, le=8192)] = Field(400, description="STFT window in samples")
    hop_length: Annotated[int, Field(ge=16, le=4096)] = Field(160, description="STFT hop in samples")

    @model_validator(mode="after")
    def lengths_fit(self) -> "FeaturesConfig":
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must not exceed n_fft {self.n_fft}")
        if self.win_length % 2 or self.n_fft % 2:
            raise ValueError(f"win_length {self.win_length} and n_fft {self.n_fft} must be even: a frame has a middle")
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} must not exceed n_mels {self.n_mels}")
        return self


class ModelConfig(Section):
    name: Annotated[str, Field(min_length=1)] = Field("spira_v1", description="Network, by its name in the model table")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.7, description="Dropout after each layer")


class TrainConfig(Section):
    epochs: Annotated[int, Field(ge=1, le=10000)] = Field(100, description="Most epochs to train")
    batch: Annotated[int, Field(ge=1, le=1024)] = Field(5, description="Recordings in a batch; all their windows go in")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(1e-3, description="Peak learning rate of Adam")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.01, description="L2 penalty of Adam")
    warmup_steps: Annotated[int, Field(ge=1, le=100000)] = Field(1000, description="Steps to the peak (Noam schedule)")
    patience: Annotated[int, Field(ge=0, le=10000)] = Field(
        20, description="Stop after so many epochs without a better validation loss; 0 never stops early"
    )
    noisy_share: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of training draws taken from the noisy variants, the same for both classes"
    )
    time_masks: Annotated[int, Field(ge=0, le=8)] = Field(
        0, description="Stretches of each training batch in which time stands still (after SpecAugment)"
    )
    mixup: Annotated[float, Field(ge=0, le=4)] = Field(
        0.0, description="Mix each training window with another of its batch by a share of Beta(mixup, mixup); 0: off"
    )
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of the moving average of the weights that is kept instead of the last ones; 0: off"
    )
    mask_frames: Annotated[int, Field(ge=1, le=400)] = Field(40, description="Longest such stretch, in frames")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train; auto takes CUDA where it is")
    mixed_precision: bool = Field(
        False,
        description="Compute the training's forward pass in bfloat16 where the network allows it, on a GPU or a CPU; "
        "weights, loss, validation and what is served stay float32",
    )


class DecisionConfig(Section):
    threshold: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="Probability above which: positive")
    # The first SPIRA API answered "inconclusive" between 0.45 and 0.55.
    band: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.05, description="Smallest half width of the inconclusive band around the threshold"
    )
    max_band: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.25, description="Largest half width of the band, which is chosen on the validation split"
    )
    accuracy: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.95, description="Accuracy that the band is widened for: that of the validation recordings outside of it"
    )

    @model_validator(mode="after")
    def band_has_room(self) -> "DecisionConfig":
        if self.band > self.max_band:
            raise ValueError(f"band {self.band} must not exceed max_band {self.max_band}")
        return self


class ValidateConfig(Section):
    bootstrap: Annotated[int, Field(ge=100, le=100000)] = Field(
        1000, description="Bootstrap draws for the intervals of F1 and AUC"
    )
    golden: Annotated[int, Field(ge=2, le=64)] = Field(
        4, description="Test recordings kept with their probabilities to verify the model server"
    )


class DriftConfig(Section):
    """When a partition counts as unlike the recordings that the champion was trained on."""

    # The customary reading: below 0.1 no shift, to 0.25 a moderate one, beyond it a large one (Siddiqi 2006).
    psi: Annotated[float, Field(gt=0, le=100)] = Field(
        0.25, description="Largest population stability index of a column that is no drift"
    )
    # Drift has to be beyond chance too: at most one partition in a hundred warns without a cause.
    alpha: Annotated[float, Field(ge=0.001, le=0.2)] = Field(
        0.01, description="Chance of a false warning for a whole partition, over all columns together"
    )
    # With fewer, hardly anything but a complete change of a column is beyond chance.
    min_recordings: Annotated[int, Field(ge=2, le=100000)] = Field(
        10, description="A partition with fewer recordings is not compared"
    )


class Config(Section):
    """The whole configuration of a run."""

    partition: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = Field(
        description="Partition key: the collection day, YYYY-MM-DD"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(42, description="The run's seed, the root of all randomness")
    train_each: bool = Field(
        False,
        description="Train for this partition even where a newer one has landed (backfills train the newest)",
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        2, description="CPU threads of each step; part of the run's identity, since floating-point sums depend on it"
    )
    data: DataConfig = DataConfig()
    extract: ExtractConfig = ExtractConfig()
    split: SplitConfig = SplitConfig()
    noise: NoiseConfig = NoiseConfig()
    features: FeaturesConfig = FeaturesConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    decision: DecisionConfig = DecisionConfig()
    # "validate" is a name of pydantic's, so the section is called as the step's noun
    validation: ValidateConfig = ValidateConfig()
    drift: DriftConfig = DriftConfig()

    @field_validator("partition")
    @classmethod
    def partition_is_a_day(cls, value: str) -> str:
        try:
            date.fromisoformat(value)
        except ValueError:
            raise ValueError("not a day of the calendar; write YYYY-MM-DD") from None
        return value

    def canonical(self) -> str:
        """The configuration as JSON that is the same for the same values."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def resolve(files: Sequence[Path], overrides: Mapping[str, Any]) -> Config:
    """Merge YAML `files` in order, then `overrides` (dotted name -> value), and validate.

    Raises `BadInput`; its message names each wrong field, its value and what is allowed.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, _read_yaml(file))
    for dotted, value in overrides.items():
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        merged = _merge(merged, nested)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise BadInput("configuration:\n" + "\n".join(f"  {_explain(e)}" for e in error.errors())) from None


def preset_files(preset: str, folder: Path = CONFIG_DIR) -> list[Path]:
    """The YAML files of a preset: the defaults, then the preset's own file."""
    file = folder / f"{preset}.yaml"
    known = sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "gate")
    if preset not in known:
        raise BadInput(f"preset: {preset!r} is unknown; allowed: {', '.join(known)}")
    return list(dict.fromkeys([folder / "default.yaml", file]))


def parse_override(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3); the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadInput(f"--set {text!r}: write section.field=value, for example train.epochs=3")
    try:
        return name.strip(), yaml.safe_load(_yaml_number(value))
    except yaml.YAMLError:
        raise BadInput(f"--set {text!r}: the value is not valid YAML") from None


def load(run: Path) -> Config:
    """The configuration that `setup` wrote into a run folder."""
    file = Path(run) / "config.json"
    try:
        return Config.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{file}: not found; run `spira-train setup` first and pass the folder it names") from None
    except ValidationError as error:
        details = "; ".join(_explain(e) for e in error.errors())
        raise BadInput(f"{file}: not a configuration of this version ({details}); run setup again") from None


def flatten() -> dict[str, dict[str, Any]]:
    """Every scalar field as `dotted name -> JSON schema with its default`: the source of the DAG's params."""
    schema = Config.model_json_schema()
    fields: dict[str, dict[str, Any]] = {}
    for name, spec in schema["properties"].items():
        section = schema["$defs"].get(str(spec.get("$ref", "")).rpartition("/")[2])
        inner = {f"{name}.{k}": v for k, v in section["properties"].items()} if section else {name: spec}
        for key, value in inner.items():
            fields[key] = {k: v for k, v in value.items() if k != "title"}
    return fields


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{file}: configuration file not found") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}:{where} is not valid YAML") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: expected sections such as `train:`, found {type(content).__name__}")
    return content


def _yaml_number(value: str) -> str:
    """YAML 1.1 reads 1e-3 as text; people mean a number."""
    try:
        return repr(float(value)) if "e" in value.lower() else value
    except ValueError:
        return value


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def _explain(error: Any) -> str:
    name = ".".join(map(str, error["loc"])) or "configuration"
    if error["type"] == "extra_forbidden":
        known = [*flatten(), *Config.model_fields]
        near = difflib.get_close_matches(name, known, n=1)
        return f"{name}: unknown field" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return (
            f"{name}: is required ({Config.model_fields[name].description})"
            if name in Config.model_fields
            else (f"{name}: is required")
        )
    message = error["msg"].removeprefix("Value error, ")
    value = "" if isinstance(error["input"], Mapping | BaseModel) else f" is {error['input']!r};"
    return f"{name}:{value} {message[0].lower()}{message[1:]}"
