"""The commands beside the pipeline: they fill a lake, and show or write down what can be set."""

import inspect
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml
from rich.console import Console

from spira_train import config as configuration
from spira_train.outcome import Exit
from spira_train.step import emit
from spira_train.store import write_atomic

app = typer.Typer()

LakeOption = Annotated[
    str, typer.Option("--lake", envvar="SPIRA_LAKE", help="The data lake: a folder or an fsspec URI")
]


def _simulate(lake: LakeOption, force: bool = False, **values: Any) -> None:
    """Write a lake of synthetic recordings in the form that SPIRA published; its data card says what they are."""
    from spira_train import simulate as simulator

    emit("simulate", **simulator.run(lake=lake, settings=simulator.read_settings(values), force=force))


def _simulation_options() -> Any:
    """`_simulate` with one option for each field of the settings, so that the two cannot drift apart."""
    from spira_train.cohort import Simulation

    signature = inspect.signature(_simulate)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    knobs = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[cast(type, field.annotation), typer.Option(help=field.description)],
        )
        for name, field in Simulation.model_fields.items()
    ]

    def command(**values: Any) -> None:
        _simulate(**values)

    command.__doc__ = _simulate.__doc__
    command.__signature__ = signature.replace(parameters=[*fixed, *knobs])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*fixed, *knobs]}
    return command


app.command("simulate")(_simulation_options())


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where signing.key is made, which nobody else may read")],
    public: Annotated[Path | None, typer.Option(help="Where signing.pub is made; beside it unless said")] = None,
) -> None:
    """Make the pair of keys that archives are signed and verified with; what is there already stays as it is."""
    from spira_train import signing

    emit("keys", fingerprint=signing.make_keys(folder, public))


@app.command("import-covid19-cough")
def import_covid19_cough(
    source: Annotated[Path, typer.Argument(help="Folder with metadata.json and raw/")], lake: LakeOption
) -> None:
    """Bring the public covid19-cough recordings into the lake as they were collected."""
    from spira_train import covid19_cough

    emit("import-covid19-cough", **covid19_cough.run(source=source, lake=lake))


@app.command()
def schema() -> None:
    """Print the fields of the trigger form, with limits and presets: the content of dags/params.json."""
    from spira_train.form import render

    print(render(), end="")


@app.command("config")
def show_config(
    preset: Annotated[str, typer.Option(help="A file of the configuration folder, by name")] = "default",
) -> None:
    """Show every setting of a preset with its meaning."""
    from rich.table import Table

    config = configuration.resolve(configuration.preset_files(preset), {"partition": "2026-01-01"})
    values: Any = config.model_dump(mode="json")
    table = Table("setting", "value", "meaning", title=f"preset {preset}", title_justify="left")
    for name, spec in configuration.flatten().items():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        table.add_row(name, yaml.safe_dump(value).splitlines()[0], spec.get("description", ""))
    Console().print(table)


@app.command("audit-gate")
def audit_gate(
    folder: Annotated[Path, typer.Option(help="Where simulated lakes and trained models are kept")],
    gate: Annotated[Path, typer.Option(envvar="SPIRA_GATE", help="The gate's limits")] = (
        configuration.CONFIG_DIR / "gate.yaml"
    ),
    preset: Annotated[str, typer.Option(help="The recipe of the models")] = "default",
    output: Annotated[Path | None, typer.Option(help="Write the table there as well, in Markdown")] = None,
    small: Annotated[bool, typer.Option(help="One honest model instead of ten, and a few bad ones less")] = False,
) -> None:
    """Plant bad models and data before the gate and see each refused for the right reason, and honest ones blessed."""
    from rich.table import Table

    from spira_train import audit
    from spira_train.gate import read

    cases = audit.run(folder, read(gate), preset=preset, small=small)
    table = Table("case", "what was planted", "clean AUC", "the gate", "broken checks", title="audit of the gate")
    for case in cases:
        verdict = "refused" if case.broken else "blessed"
        colour = "green" if case.right else "red"
        table.add_row(case.name, case.what, f"{case.auc:.3f}", f"[{colour}]{verdict}[/]", ", ".join(case.broken[:4]))
    Console().print(table)
    if output:
        write_atomic(output, audit.table(cases).encode())
    bad, honest = ([case for case in cases if bool(case.expected) is kind] for kind in (True, False))
    wrong = [case.name for case in bad if not case.right]
    blessed = sum(case.right for case in honest)
    message = f"{len(bad) - len(wrong)} of {len(bad)} bad ones refused for the right reason"
    message += f", {blessed} of {len(honest)} honest ones blessed"
    enough = not wrong and blessed >= 0.9 * len(honest)
    emit("audit-gate", Exit.DONE if enough else Exit.REFUSED, message, wrong=wrong)
    if not enough:
        raise SystemExit(int(Exit.REFUSED))
