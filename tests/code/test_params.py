"""The DAG's trigger form stands beside the DAG as a file; it must say what the configuration says."""

import json
from pathlib import Path

from spira_train.config import Config, Section
from spira_train.form import form, render

FILE = Path(__file__).resolve().parents[2] / "dags" / "params.json"


def test_the_form_is_up_to_date():
    assert FILE.read_text() == render(), "run `make params`"


def test_every_field_is_in_the_form_with_every_preset():
    fields = form()["fields"]
    config = Config(partition="2026-01-01")
    flat = {f"{name}.{key}" for name, section in config if isinstance(section, Section) for key, _ in section}
    assert flat - set(fields) == {"features.sample_rate"}  # the one field without a choice
    assert {"seed", "train_each"} <= set(fields)
    assert all(set(spec["presets"]) == set(form()["presets"]) and spec["description"] for spec in fields.values())


def test_a_preset_shows_its_own_values():
    assert json.loads(render())["fields"]["train.epochs"]["presets"]["spira_v1"] == 1000
