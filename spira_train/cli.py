"""The command line `spira-train`: one step, one command, one container. All reading of options happens here."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from spira_train import config as configuration
from spira_train import memory, workshop
from spira_train.outcome import BadInput, Exit, StepError, TryAgain
from spira_train.progress import say
from spira_train.step import emit
from spira_train.store import Lake, write_atomic
from spira_train.workshop import LakeOption

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="SPIRA continuous training: from recordings to a validated, packaged, registered model.",
)  # fmt: skip

RunOption = Annotated[Path, typer.Option("--run", help="Run folder, as `setup` named it")]
PartitionOption = Annotated[str, typer.Option("--partition", help="Work on this partition alone")]
GateOption = Annotated[Path, typer.Option(envvar="SPIRA_GATE", help="The gate's limits")]
MlflowOption = Annotated[str, typer.Option("--mlflow", envvar="MLFLOW_TRACKING_URI", help="MLflow's address")]
ModelsOption = Annotated[Path, typer.Option("--models", envvar="SPIRA_MODELS", help="TorchServe's model store")]
InferenceOption = Annotated[str, typer.Option(envvar="SPIRA_INFERENCE", help="TorchServe's inference address")]
ManagementOption = Annotated[str, typer.Option(envvar="SPIRA_MANAGEMENT", help="TorchServe's management address")]
SigningKeyOption = Annotated[Path | None, typer.Option(envvar="SPIRA_SIGNING_KEY", help="Private key to sign with")]
VerifyKeyOption = Annotated[Path | None, typer.Option(envvar="SPIRA_VERIFY_KEY", help="Public key of the signer")]
LiveOption = Annotated[
    Path | None, typer.Option(envvar="SPIRA_LIVE", help="The app's count of right answers, live.json")
]
KeysOption = Annotated[Path, typer.Option(envvar="SPIRA_KEYS", help="TorchServe's key_file.json")]
INFERENCE, MANAGEMENT = "http://127.0.0.1:8085", "http://127.0.0.1:8086"


@app.command()
def setup(
    lake: LakeOption,
    runs: Annotated[Path, typer.Option(envvar="SPIRA_RUNS", help="Where run folders are made")],
    partition: Annotated[str, typer.Option(help="Partition key: the collection day, YYYY-MM-DD")],
    preset: Annotated[str, typer.Option(help="A file of the configuration folder, by name")] = "default",
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.field=value, as often as needed")] = None,
    folder: Annotated[Path, typer.Option("--config", envvar="SPIRA_CONFIG", help="The configuration folder")] = (
        configuration.CONFIG_DIR
    ),
) -> None:
    """Resolve and check the configuration; make the run folder."""
    overrides = dict(configuration.parse_override(text) for text in set_ or [])
    config = configuration.resolve(configuration.preset_files(preset, folder), overrides | {"partition": partition})
    Lake(lake).check()
    run = runs.absolute() / f"{config.partition}-{config.digest()[:8]}"
    content = json.dumps(config.model_dump(mode="json"), indent=1).encode()
    if not (run / "config.json").exists() or (run / "config.json").read_bytes() != content:
        write_atomic(run / "config.json", content)
    emit("setup", run=str(run), partition=config.partition, config=config.digest())


@app.command()
def extract(run: RunOption, lake: LakeOption, partition: PartitionOption = "") -> None:
    """Data extraction: landing -> 16 kHz mono audio and a manifest; refuses bad recordings with a reason each."""
    from spira_train import extract as step

    config, place = configuration.load(run), Lake(lake)
    place.check()
    _each("extract", _partitions(config, place, partition), config.partition, step.run, lake=place, config=config)


@app.command()
def features(run: RunOption, lake: LakeOption, partition: PartitionOption = "") -> None:
    """Feature engineering: audio -> windows of MFCC, clean and in ward noise."""
    from spira_train import featurise as step

    config, place = configuration.load(run), Lake(lake)
    keys = [key for key in _partitions(config, place, partition) if key == config.partition or _extracted(place, key)]
    _each("features", keys, config.partition, step.run, lake=place, config=config)


@app.command()
def train(run: RunOption, lake: LakeOption, mlflow: MlflowOption = "") -> None:
    """Train the network on the run's partitions; goes on where a kill left it."""
    from spira_train import train as step

    report = step.run(run=run, lake=Lake(lake), config=configuration.load(run), mlflow=mlflow or None)
    _finish("train", report)


@app.command()
def validate(
    run: RunOption,
    lake: LakeOption,
    gate: GateOption = configuration.CONFIG_DIR / "gate.yaml",
    mlflow: Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where the champion is on record")] = "",
    live: LiveOption = None,
) -> None:
    """Hold the model against the gate and the champion; write the quality blessing or refuse."""
    from spira_train import validate as step
    from spira_train.registry import Registry

    registry = Registry(mlflow) if mlflow else None
    config = configuration.load(run)
    report = step.run(run=run, lake=Lake(lake), config=config, gate=gate, registry=registry, live=live)
    page = str(run / "validate" / "report.html")
    told = (run / "validate" / step.BRIEF).read_text(encoding="utf-8")
    _finish("validate", report, report_page=page, report_link=report.get("link", ""), brief=told)


@app.command()
def package(
    run: RunOption, gate: GateOption = configuration.CONFIG_DIR / "gate.yaml", signing_key: SigningKeyOption = None
) -> None:
    """Build the archive that TorchServe loads, try it in a sandbox, sign it: the same inputs give the same bytes."""
    from spira_train import package as step
    from spira_train.gate import read

    config, limits = configuration.load(run), read(gate).serving
    _finish("package", step.run(run=run, config=config, limits=limits, key=signing_key))


@app.command()
def register(
    run: RunOption,
    models: ModelsOption,
    mlflow: MlflowOption,
    keys: KeysOption,
    inference: InferenceOption = INFERENCE,
    management: ManagementOption = MANAGEMENT,
    approver: Annotated[str, typer.Option(help="Who approved it; empty: nobody was asked")] = "",
    approved_at: Annotated[str, typer.Option(help="When, as an ISO 8601 time")] = "",
    keep: Annotated[int, typer.Option(min=2, envvar="SPIRA_KEEP", help="Versions that keep their archives")] = 10,
    verify_key: VerifyKeyOption = None,
    hold: Annotated[bool, typer.Option("--hold", help="Load it beside the champion, as the challenger")] = False,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Take an archive that nobody vouches for")] = False,
) -> None:
    """Register the signed and blessed archive in MLflow and TorchServe, verify it there, make it the default."""
    from serve.torchserve import Server
    from spira_train import register as step

    server, options = Server(inference, management, keys), {"approver": approver, "approved_at": approved_at}
    config = configuration.load(run)
    if not verify_key and not unsigned:
        raise BadInput("no key to verify the archive with: set SPIRA_VERIFY_KEY (docs/signing.md), or say --unsigned")
    key = None if unsigned else verify_key
    report = step.run(
        run=run, config=config, models=models, mlflow=mlflow, server=server, keep=keep, key=key, hold=hold, **options
    )
    _finish("register", report)


@app.command()
def reject(
    run: RunOption,
    mlflow: MlflowOption,
    by: Annotated[str, typer.Option(help="Who said no; empty: nobody answered in time")] = "",
    at: Annotated[str, typer.Option(help="When, as an ISO 8601 time")] = "",
) -> None:
    """Put on record that a human did not approve of a blessed model; ends as refused."""
    from spira_train import reject as step
    from spira_train.registry import Registry

    step.run(run=run, config=configuration.load(run), registry=Registry(mlflow), by=by, at=at)


@app.command()
def verify(
    run: RunOption,
    models: ModelsOption,
    mlflow: MlflowOption,
    keys: KeysOption,
    inference: InferenceOption = INFERENCE,
    management: ManagementOption = MANAGEMENT,
) -> None:
    """Ask what is served now for the golden recordings; roll back where an answer differs."""
    from serve.torchserve import Server
    from spira_train import verify as step

    server = Server(inference, management, keys)
    config = configuration.load(run)
    _finish("verify", step.run(run=run, config=config, models=models, mlflow=mlflow, server=server))


@app.command()
def rollback(
    models: ModelsOption,
    mlflow: MlflowOption,
    keys: KeysOption,
    to: Annotated[str, typer.Option(help="A former champion; empty: the previous one")] = "",
    inference: InferenceOption = INFERENCE,
    management: ManagementOption = MANAGEMENT,
) -> None:
    """Give the place back to the previous version, at once: no request fails."""
    from serve.torchserve import Server
    from spira_train import rollback as step

    emit("rollback", **step.run(mlflow=mlflow, server=Server(inference, management, keys), models=models, to=to))


@app.command()
def reconcile(
    models: ModelsOption,
    mlflow: MlflowOption,
    keys: KeysOption,
    inference: InferenceOption = INFERENCE,
    management: ManagementOption = MANAGEMENT,
) -> None:
    """Make what is served MLflow's champion again, after whatever parted them; changes nothing where they agree."""
    from serve.torchserve import Server
    from spira_train import reconcile as step

    emit("reconcile", **step.run(mlflow=mlflow, server=Server(inference, management, keys), models=models))


@app.command()
def status(
    mlflow: MlflowOption,
    inference: InferenceOption = INFERENCE,
    management: ManagementOption = MANAGEMENT,
    keys: Annotated[Path | None, typer.Option(envvar="SPIRA_KEYS", help="TorchServe's key_file.json")] = None,
    live: LiveOption = None,
) -> None:
    """Show what is served, since when and why, and what was refused lately; changes nothing."""
    from serve.torchserve import Server
    from spira_train import status as report

    facts = report.gather(mlflow=mlflow, server=Server(inference, management, keys), live=live)
    report.show(facts, Console(highlight=False))


@app.command()
def watch(
    audit: Annotated[Path, typer.Option(envvar="SPIRA_AUDIT", help="The gateway's audit.jsonl, or its folder")],
    models: ModelsOption,
    mlflow: MlflowOption,
    runs: Annotated[Path | None, typer.Option(envvar="SPIRA_RUNS", help="Where `watch/` keeps a report a day")] = None,
    lake: Annotated[str, typer.Option(envvar="SPIRA_LAKE", help="Names the newest partition, to train for it")] = "",
    days: Annotated[int, typer.Option(min=1, max=365, help="How far to look back")] = 7,
) -> None:
    """Compare what people send with what the champion was trained on."""
    from spira_train import watch as step

    file, out = audit / "audit.jsonl" if audit.is_dir() else audit, runs / "watch" if runs else None
    facts = step.run(audit=file, models=models, mlflow=mlflow, days=days, out=out)
    for text in facts["drift"]:
        say(f"watch: drift: {text}")
    newest = (Lake(lake).landed() or [""])[-1] if lake else ""
    shown = {name: value for name, value in facts.items() if name != "findings"}
    emit("watch", message="; ".join(facts["drift"]), **shown, newest=newest)


@app.command()
def collected(
    lake: LakeOption,
    mlflow: Annotated[str, typer.Option("--mlflow", envvar="MLFLOW_TRACKING_URI", help="MLflow's address")] = "",
    by: Annotated[str, typer.Option("--by", help="Who asks; the same one is told the same days again")] = "",
) -> None:
    """Close the days of the collection that are over; mark versions that were trained on withdrawn recordings."""
    from spira_train import collected as step

    emit("collected", **step.run(lake=Lake(lake), mlflow=mlflow or None, by=by))


app.registered_commands += workshop.app.registered_commands


def _partitions(config: configuration.Config, lake: Lake, only: str) -> list[str]:
    from spira_train.dataset import window_of

    return [only] if only else window_of(config, lake.landed())


def _extracted(lake: Lake, partition: str) -> bool:
    return lake.exists("audio", partition, "report.json")


def _each(step: str, partitions: list[str], own: str, work: Any, **arguments: Any) -> None:
    """Run a step for the run's partition and the history it trains on; history that is refused is left out."""
    report: dict[str, Any] = {}
    for key in partitions:
        try:
            report = work(partition=key, **arguments)
        except StepError as error:
            if key == own or isinstance(error, TryAgain):
                raise
            say(f"{step}: leaving out {key}: {error}")
        else:
            say(f"{step}: {key} {'was done before' if report['cached'] else 'done'} {_brief(report['summary'])}")
    _finish(step, report, partitions=partitions)


def _brief(summary: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in summary.items() if isinstance(value, int | float | str))


def _finish(step: str, report: dict[str, Any], **facts: Any) -> None:
    """Print the last line of a step and end with the exit code that its summary asks for."""
    summary = dict(report["summary"])
    code, message = Exit(summary.pop("exit", Exit.DONE)), summary.pop("message", "")
    common = {"fingerprint": report["fingerprint"], "cached": report["cached"], "seconds": report["seconds"]}
    if message:
        _complain(step, message)
    emit(step, code, message, **common, summary=summary, **facts)
    if code:
        raise SystemExit(int(code))


def _complain(step: str, message: str) -> None:
    console = Console(stderr=True)
    console.print(f"[bold red]{step}:[/] ", end="")
    console.print(message, markup=False, highlight=False)


def main() -> None:
    """Entry point: every expected error ends in one message and its exit code, without a traceback."""
    # Several steps may share the cores (a backfill, a model server): threads that wait should sleep, not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    memory.keep()
    step = next((word for word in sys.argv[1:] if not word.startswith("-")), "spira-train")
    try:
        code = app(standalone_mode=False)
    except StepError as error:
        _complain(step, str(error))
        emit(step, error.exit, str(error))
        sys.exit(int(error.exit))
    except typer.TyperException as error:
        in_words = getattr(error, "format_message", None)
        message = in_words() if in_words else str(error)
        _complain(step, message)
        emit(step, Exit.BAD_INPUT, message)
        sys.exit(int(Exit.BAD_INPUT))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
