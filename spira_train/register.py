"""A blessed archive -> a version in MLflow and TorchServe, verified there, then the default one.

Each part looks at what is there before it acts, so a run that was killed anywhere is healed by running again, and a
second run changes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train.config import Config
from spira_train.outcome import Refused
from spira_train.package import blessed, check_blessing, intact
from spira_train.progress import say
from spira_train.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry, promote
from spira_train.step import perform
from spira_train.store import digest_bytes, digest_json, local_lake, read_report

_TAGS = ("name", "version", "content", "partition", "weights", "description", "blessing", "train", "validate", "config")


def run(*, run: Path, config: Config, models: Path, mlflow: str, server: Server) -> dict[str, Any]:
    """Register the archive of a run and make it the default version; returns the report (`register/report.json`).

    Raises `Refused` where archive, blessing and weights do not belong together or the server's answers differ from
    validation's, `TryAgain` where MLflow or TorchServe is away.
    """
    package = checked(run)
    version, archive = package["version"], run / "package" / package["file"]
    registry = Registry(mlflow)
    number = _record(registry, run, archive, package)
    aliases, known = registry.aliases(), registry.versions()
    served = torchserve.status(server)
    champion = known[aliases[CHAMPION]].tags["version"] if CHAMPION in aliases else None
    if known[number].tags.get("promoted") == "true" and champion not in (None, version):
        say(f"register: {version} was the champion before {champion}; a newer one is not pushed aside")
        return _report(run, package, number, champion, {"message": f"{champion} is the champion now"})
    if champion != version:
        registry.point(CHALLENGER, number)
    if served["versions"] and champion is None and served["default"] not in (None, version):
        say(f"register: {served['default']} is served, but MLflow knows no champion")
    outcome = torchserve.register(server, archive, version, models)
    say(f"register: {version} is {outcome} and READY")
    found = _verified(server, version, run, champion)
    torchserve.promote(server, version)
    promote(registry, number)
    _retire(registry, server)
    say(f"register: {version} is the default version and the champion")
    previous = registry.aliases().get(PREVIOUS)  # noted for a rollback, which must not wait for MLflow
    earlier = registry.versions()[previous].tags["version"] if previous else None
    return _report(run, package, number, version, {"verified": found["recordings"], "previous": earlier})


def checked(run: Path) -> dict[str, Any]:
    """package.json of a run; raises `Refused` unless archive, weights, description and blessing belong together."""
    reports = blessed(run)
    packaged = read_report(*local_lake(run / "package"))
    if packaged is None:
        raise Refused(f"{run / 'package'}: not finished; run `spira-train package` first")
    intact(run / "package" / "package.json", packaged["outputs"].get("package.json"))
    package: dict[str, Any] = json.loads((run / "package" / "package.json").read_text())
    archive = run / "package" / package["file"]
    intact(archive, package["archive"])
    infra = run / "package" / "infra.json"
    intact(infra, packaged["outputs"].get("infra.json"))
    facts = json.loads(infra.read_text())
    if facts.get("blessing") != "infra" or facts.get("archive") != package["archive"]:
        raise Refused(f"{infra}: no infra blessing of this archive; run `spira-train package` again")
    inside = {name: torchserve.member_digest(archive, name) for name in ("model.safetensors", "model.json")}
    blessing = torchserve.read_member(archive, "blessing.json")
    check_blessing(json.loads(blessing), inside, f"{archive}: blessing.json")
    if digest_bytes(blessing) != reports["validate"]["outputs"]["blessing.json"]:
        raise Refused(f"{archive}: carries another blessing than validate/ holds; run `spira-train package` again")
    return package


def _record(registry: Registry, run: Path, archive: Path, package: Mapping[str, Any]) -> str:
    """The MLflow version of the archive, with its lineage as tags; returns its number."""
    known = registry.version(package["archive"])
    if known:
        return str(known.version)
    note = run / "mlflow.json"
    earlier = json.loads(note.read_text())["run_id"] if note.is_file() else None
    run_id = registry.run(earlier, run.name, {"partition": package["partition"], "run": run.name})
    metrics = json.loads((run / "validate" / "metrics.json").read_text())
    flat = {
        f"test.{probe}.{name}": entry["value"]
        for probe, entries in metrics.items()
        for name, entry in entries.items()
        if isinstance(entry, dict)
    }
    names = ("validate/report.html", "validate/metrics.json", "validate/verdict.json", "package/model-card.md")
    registry.log(run_id, files={name: run / name for name in names if (run / name).is_file()}, metrics=flat)
    tags = {name: str(package[name]) for name in _TAGS} | {"archive": package["archive"]}
    tags |= {"partitions": ",".join(package["partitions"]), "inputs": digest_json(package["inputs"])}
    tags |= {"code": package["code"]["spira_train"], "code_archive": package["code"]["archive"]}
    return registry.create(archive=archive, run_id=run_id, tags=tags)


def _verified(server: Server, version: str, run: Path, champion: str | None) -> dict[str, Any]:
    try:
        found = torchserve.verify(server, version, run / "validate" / "golden")
    except Refused as error:
        # TorchServe makes its very first version the default by itself: without a champion, none is better than wrong
        if champion != version:
            torchserve.unregister(server, version)
        raise Refused(f"{error}. {version} was not promoted; what was served before goes on") from None
    say(
        f"register: {found['recordings']} golden recordings answered as in validation "
        f"(largest difference {found['largest_difference']:.1e}, {found['milliseconds']:.0f} ms each)"
    )
    return found


def _retire(registry: Registry, server: Server) -> None:
    """Unload champions older than the previous one: each version costs a process. Their archives stay."""
    aliases = registry.aliases()
    kept = {aliases.get(CHAMPION), aliases.get(PREVIOUS)}
    loaded = torchserve.status(server)["versions"]
    for number, known in registry.versions().items():
        version = known.tags.get("version")
        if number not in kept and known.tags.get("promoted") == "true" and version in loaded:
            torchserve.unregister(server, version)
            say(f"register: {version} is unloaded; its archive stays in the model store")


def _report(
    run: Path, package: Mapping[str, Any], number: str, champion: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Keep the lasting facts as `register/report.json`; a second run with the same facts changes no byte of it."""
    version = package["version"]
    facts = {"version": version, "mlflow_version": number, "archive": package["archive"], "champion": champion, **more}
    inputs = {"archive": package["archive"]}
    return perform("register", digest_json(facts), *local_lake(run / "register"), lambda _: facts, inputs)
