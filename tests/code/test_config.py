"""Every shipped configuration loads, and every error names the field, the value and what is allowed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train import config
from spira_train.outcome import BadInput

DAY = {"partition": "2026-11-05"}
PRESETS = sorted(p.stem for p in config.CONFIG_DIR.glob("*.yaml") if p.stem != "gate")


@pytest.mark.parametrize("preset", PRESETS)
def test_shipped_preset_loads(preset):
    assert config.resolve(config.preset_files(preset), DAY).partition == "2026-11-05"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=0", ["train.epochs", "0", "greater than or equal to 1"]),
        ("train.epoch=3", ["train.epoch", "did you mean train.epochs"]),
        ("train.device=tpu", ["train.device", "tpu", "'auto', 'cpu' or 'cuda'"]),
        ("noise.max_peak=0.01", ["noise", "min_peak", "max_peak 0.01"]),
        ("split.test=0.9", ["split", "nothing is left to train on"]),
        ("partition=yesterday", ["partition", "yesterday", "pattern"]),
        ("seed=many", ["seed", "many", "integer"]),
        ("features.win_length=1300", ["win_length 1300", "n_fft 1024"]),
    ],
)
def test_error_names_field_value_and_what_is_allowed(override, words):
    with pytest.raises(BadInput) as caught:
        config.resolve(config.preset_files("default"), DAY | dict([config.parse_override(override)]))
    for word in words:
        assert word in str(caught.value)


def test_every_error_is_told_at_once():
    with pytest.raises(BadInput) as caught:
        config.resolve(config.preset_files("default"), DAY | {"train.epochs": 0, "seed": -1})
    assert "train.epochs" in str(caught.value)
    assert "seed" in str(caught.value)


def test_missing_partition_is_told():
    with pytest.raises(BadInput, match=r"partition: is required"):
        config.resolve(config.preset_files("default"), {})


def test_unknown_preset_lists_the_known():
    with pytest.raises(BadInput, match=r"'turbo' is unknown; allowed: cough, default, fast, spira_v1"):
        config.preset_files("turbo")


@pytest.mark.parametrize("content", ["- a list", "train: [", "\t"])
def test_broken_yaml_is_named(tmp_path: Path, content):
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(BadInput, match=r"broken\.yaml"):
        config.resolve([file], DAY)


def test_scientific_numbers_are_numbers():
    assert config.parse_override("train.learning_rate=1e-3") == ("train.learning_rate", 0.001)


@given(st.integers(0, 2**31 - 1), st.integers(1, 10000))
def test_digest_follows_values_not_the_way_they_came(seed, epochs):
    overrides = {"seed": seed, "train.epochs": epochs}
    one = config.resolve(config.preset_files("fast"), DAY | overrides)
    two = config.resolve(config.preset_files("fast"), dict(reversed(overrides.items())) | DAY)
    assert one.digest() == two.digest()
    assert one.digest() != config.resolve(config.preset_files("fast"), DAY | {"seed": seed ^ 1}).digest()


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.resolve(config.preset_files("fast"), DAY).seed = 1


def test_every_field_says_what_it_means():
    assert [name for name, spec in config.flatten().items() if not spec.get("description")] == []


def test_run_folder_without_configuration_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"config\.json: not found; run `spira-train setup`"):
        config.load(tmp_path)
