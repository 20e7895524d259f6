"""What the DAG's trigger form must know: every hyper-parameter, its limits and the value each preset gives it.

`spira-train schema > dags/params.json`: the DAG reads that file, since it may not import this package.
"""

import json
from pathlib import Path
from typing import Any

from spira_train.config import CONFIG_DIR, Config, flatten, preset_files, resolve

# The DAG takes the partition from the scheduler, so it is no field of the form.
_ANY_PARTITION = "2000-01-01"


def form(folder: Path = CONFIG_DIR) -> dict[str, Any]:
    """`{"presets": [names], "fields": {dotted name: JSON schema + "presets": {preset: value}}}`.

    Fields with one allowed value (`const`) are left out: there is nothing to choose.
    """
    names = sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "gate")
    values = {name: _values(resolve(preset_files(name, folder), {"partition": _ANY_PARTITION})) for name in names}
    fields = {
        field: {k: v for k, v in spec.items() if k != "default"} | {"presets": {n: values[n][field] for n in names}}
        for field, spec in flatten().items()
        if field != "partition" and "const" not in spec
    }
    return {"presets": names, "fields": fields}


def render(folder: Path = CONFIG_DIR) -> str:
    """`form` as the bytes of `dags/params.json`."""
    return json.dumps(form(folder), indent=1, ensure_ascii=False) + "\n"


def _values(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat
