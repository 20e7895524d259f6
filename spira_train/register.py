"""A blessed archive -> a version in MLflow and TorchServe, verified there, then the default one.

Each part looks at what is there before it acts, so a run that was killed anywhere is healed by running again, and a
second run changes nothing.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train import signing
from spira_train.config import Config
from spira_train.outcome import BadInput, Refused
from spira_train.package import blessed, check_blessing, intact
from spira_train.progress import say
from spira_train.reconcile import announce, done, settle, unload
from spira_train.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry, promote
from spira_train.step import perform
from spira_train.store import digest_bytes, digest_file, digest_json, local_lake, read_report

KEEP = 10  # versions whose archives stay
_TAGS = ("name", "version", "content", "partition", "weights", "description", "blessing", "train", "validate", "config")
# What MLflow keeps of the run, where it is there, beside curves and archive.
_FILES = (
    "config.json",
    "train/report.json",
    "train/recordings.json",
    *(f"validate/{name}.json" for name in ("metrics", "evidence", "verdict", "blessing", "statistics", "drift")),
    "validate/report.html",
    *(f"package/{name}" for name in ("package.json", "infra.json", "model-card.md", signing.SIGNATURE)),
)
# Tag -> file of which it is the SHA-256.
_DIGESTS = {
    "infra": "package/infra.json",
    "report": "validate/report.html",
    "statistics": "validate/statistics.json",
    "drift": "validate/drift.json",
}
_HEADLINES = (("clean", "auc"), ("clean", "accuracy"), ("ward_noise", "accuracy"))


def run(
    *,
    run: Path,
    config: Config,
    models: Path,
    mlflow: str,
    server: Server,
    approver: str = "",
    approved_at: str = "",
    keep: int = KEEP,
    key: Path | None = None,
    hold: bool = False,
) -> dict[str, Any]:
    """Register the archive of a run and make it the default version; returns the report (`register/report.json`).

    approver, approved_at: who said yes, and when (ISO 8601); empty where nobody was asked. keep: how many versions keep
    their archives, beside those that have an alias. key: the public key that the archive must be signed for; None takes
    it unsigned. hold: load and verify it beside the champion, as the challenger, and stop there. Raises `Refused` where
    archive, blessing and weights do not belong together or the server's answers differ from validation's, `BadInput`
    where there is no champion to be held beside, `TryAgain` where MLflow or TorchServe is away.
    """
    approval = _approval(approver, approved_at)
    signed = signature(run, key)
    package = checked(run)
    registry = Registry(mlflow)
    with torchserve.alone(models):  # aliases and default version move together, or not at all
        number = _record(registry, run, package, approval | signed)
        return _serve(registry, server, run, package, number, models, keep, hold)


def _serve(
    registry: Registry,
    server: Server,
    run: Path,
    package: Mapping[str, Any],
    number: str,
    models: Path,
    keep: int,
    hold: bool,
) -> dict[str, Any]:
    """Load the version, verify it, make it the default and the champion; see `run`."""
    version, archive = package["version"], run / "package" / package["file"]
    served = torchserve.status(server)
    # Where this version is the default already, an earlier try was cut off: it is verified first, and promoted then.
    for mended in settle(registry, server, models) if served["default"] != version else ():
        say(f"register: {mended}")
    aliases, known = registry.aliases(), registry.versions()
    champion = known[aliases[CHAMPION]].tags["version"] if CHAMPION in aliases else None
    same = {number, *_packed_before(known, package)}  # one model, though its archive may carry newer code
    ours = {known[each].tags["version"] for each in same}
    if champion and champion not in ours and any(known[each].tags.get("promoted") == "true" for each in same):
        say(f"register: the model of {version} was the champion before {champion}; a newer one is not pushed aside")
        return _report(run, package, number, champion, {"message": f"{champion} is the champion now"})
    if champion and champion not in ours:
        _compared(run, champion, known[aliases[CHAMPION]].tags["archive"])
    if hold and champion in (None, version):
        raise BadInput(f"{version}: there is no other champion to be held beside; register it without --hold")
    outcome = torchserve.register(server, archive, version, models)
    say(f"register: {version} is {outcome} and READY")
    if champion != version:
        registry.point(CHALLENGER, number)
    found = _verified(registry, server, version, run, champion)
    if hold:
        for unloaded in unload(registry, server):  # the challenger before this one
            say(f"register: {unloaded}")
        said = f"{version} is loaded beside the champion {champion}, as the challenger"
        return _report(run, package, number, champion, {"verified": found["recordings"], "message": said})
    announce(models, server, version)
    torchserve.promote(server, version)
    promote(registry, number)
    done(models, server)
    say(f"register: {version} is the default version and the champion")
    for unloaded in unload(registry, server):
        say(f"register: {unloaded}")
    _retain(registry, server, models, keep)
    previous = registry.aliases().get(PREVIOUS)  # noted for a rollback, which must not wait for MLflow
    earlier = registry.versions()[previous].tags["version"] if previous else None
    return _report(run, package, number, version, {"verified": found["recordings"], "previous": earlier})


def signature(run: Path, key: Path | None) -> dict[str, str]:
    """The tag that says who signed `package/` of a run; raises `Refused` unless `key` did. None: nobody is asked."""
    folder = run / "package"
    packaged = read_report(*local_lake(folder))
    if packaged is None:
        raise Refused(f"{folder}: not finished; run `spira-train package` first")
    if key is None:
        say("register: the signature of the archive is not verified: no SPIRA_VERIFY_KEY")
        return {}
    signer = signing.verify(folder, key)
    intact(folder / signing.SIGNATURE, packaged["outputs"].get(signing.SIGNATURE))
    say(f"register: the archive, its papers and both blessings are signed by {signer[:12]}")
    return {"signed_by": signer}


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
    if package["evidence"] != digest_json(found := reports["validate"]["outputs"]):
        raise Refused(f"{run / 'validate'}: says something else than was packaged; run `spira-train package` again")
    for name, expected in found.items():
        intact(run / "validate" / name, expected)
    return package


def _compared(run: Path, champion: str, archive: str) -> None:
    """Raise `Refused` unless validation held this model against the one that is served now."""
    place = run / "validate" / "verdict.json"
    report = read_report(*local_lake(run / "validate")) or {"outputs": {}}
    intact(place, report["outputs"].get("verdict.json"))
    verdict = json.loads(place.read_text())
    if verdict.get("champion_archive") != archive:
        against = f"the champion of then, {verdict['champion']}" if verdict.get("champion") else "no champion"
        raise Refused(
            f"{place}: was held against {against}, but {champion} is served now; "
            "run `spira-train validate` again, with --mlflow"
        )


def _packed_before(known: Mapping[str, Any], package: Mapping[str, Any]) -> list[str]:
    """The numbers of the versions that were promoted with these weights, on this very validation.

    Their verdict is this archive's: to ask for a newer one would be in vain, for `validate` leaves what was promoted.
    """
    same = {name: package[name] for name in ("weights", "validate")}
    return [
        number
        for number, version in known.items()
        if version.tags.get("promoted") == "true" and same.items() <= version.tags.items()
    ]


def _record(registry: Registry, run: Path, package: Mapping[str, Any], told: dict[str, str]) -> str:
    """The MLflow version of the archive, with all that says where it comes from and why; returns its number.

    told: further tags, of who approved and who signed it.
    """
    archive = run / "package" / package["file"]
    known = registry.version(package["archive"])
    if known:
        number = str(known.version)
        if known.tags.get("retired") == "true":  # and wanted again
            registry.log(known.run_id, files={f"package/{archive.name}": archive}, metrics={})
            registry.tag(number, "retired", None)
        if known.tags.get("signed_by") != told.get("signed_by", known.tags.get("signed_by")):  # with another key since
            registry.log(known.run_id, files={(name := f"package/{signing.SIGNATURE}"): run / name}, metrics={})
        for name, value in told.items():
            if known.tags.get(name) != value:
                registry.tag(number, name, value)
        return number
    note = run / "mlflow.json"
    earlier = json.loads(note.read_text())["run_id"] if note.is_file() else None
    named, same = {"partition": package["partition"], "run": run.name}, {"archive": package["archive"]}
    run_id = registry.run(earlier, run.name, named, same)
    metrics = json.loads((run / "validate" / "metrics.json").read_text())
    files = {name: run / name for name in _FILES if (run / name).is_file()}
    registry.log(run_id, files=files, metrics=_numbers(metrics))
    return registry.create(archive=archive, run_id=run_id, tags=_lineage(run, package, metrics) | told)


def _lineage(run: Path, package: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version."""
    tags = {name: str(package[name]) for name in _TAGS} | {"archive": package["archive"]}
    tags |= {"partitions": ",".join(package["partitions"]), "inputs": digest_json(package["inputs"])}
    tags |= {"code": package["code"]["spira_train"], "code_archive": package["code"]["archive"]}
    versions = json.loads((run / "train" / "report.json").read_text())["versions"]
    tags |= {name: versions[name] for name in ("image", "revision") if name in versions}
    tags |= {name: digest_file(run / file) for name, file in _DIGESTS.items() if (run / file).is_file()}
    for probe, name in _HEADLINES:
        if found := metrics.get(probe, {}).get(name):
            tags[f"{probe}.{name}"] = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    verdict = json.loads((run / "validate" / "verdict.json").read_text())
    if checks := verdict.get("checks"):
        tags["checks"] = f"{sum(check['passed'] for check in checks)} of {len(checks)}"
    return tags


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow shows as metrics: the value of each metric of each probe."""
    return {
        f"test.{probe}.{name}": float(entry["value"])
        for probe, entries in metrics.items()
        for name, entry in (entries or {}).items()
        if isinstance(entry, dict) and isinstance(entry.get("value"), int | float)
    }


def _approval(approver: str, approved_at: str) -> dict[str, str]:
    if bool(approver) != bool(approved_at):
        raise BadInput("--approver and --approved-at belong together: give both, or neither where nobody was asked")
    if not approver:
        return {}
    try:
        datetime.fromisoformat(approved_at)
    except ValueError:
        raise BadInput(f"--approved-at is {approved_at!r}; expected an ISO 8601 time") from None
    return {"approver": approver, "approved_at": approved_at}


def _verified(registry: Registry, server: Server, version: str, run: Path, champion: str | None) -> dict[str, Any]:
    try:
        found = torchserve.verify(server, version, run / "validate" / "golden")
    except Refused as error:
        if champion == version:
            raise Refused(f"{error}. {version} is the champion and still served; it must be looked at now") from None
        if champion and torchserve.status(server)["default"] == version:  # promoted by a try that was cut off
            torchserve.rollback(server, champion)
        # TorchServe makes its very first version the default by itself: without a champion, none is better than wrong
        torchserve.unregister(server, version)
        registry.point(CHALLENGER, None)
        raise Refused(f"{error}. {version} was not promoted; what was served before goes on") from None
    say(
        f"register: {found['recordings']} golden recordings answered as in validation "
        f"(largest difference {found['largest_difference']:.1e}, {found['milliseconds']:.0f} ms each)"
    )
    return found


def _retain(registry: Registry, server: Server, models: Path, keep: int) -> None:
    """Let the archives of all but the newest `keep` versions go, those with an alias excepted; the records stay."""
    versions = registry.versions()
    spared = set(sorted(versions, key=int)[-keep:]) | set(registry.aliases().values())
    for number in sorted(versions.keys() - spared, key=int):
        tags = versions[number].tags
        if tags.get("retired") != "true":
            torchserve.discard(server, tags["version"], models)
            where = "model store and MLflow" if registry.retire(number) else "model store; MLflow's copy stays"
            say(f"register: {tags['version']} is retired: its archive left the {where}")


def _report(
    run: Path, package: Mapping[str, Any], number: str, champion: str | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Keep the lasting facts as `register/report.json`; a second run with the same facts changes no byte of it."""
    version = package["version"]
    facts = {"version": version, "mlflow_version": number, "archive": package["archive"], "champion": champion, **more}
    inputs = {"archive": package["archive"]}
    return perform("register", digest_json(facts), *local_lake(run / "register"), lambda _: facts, inputs)
