"""Weights, handler, code and papers -> one `.mar` that TorchServe loads. The same inputs give the same bytes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serve.sandbox import bless
from spira_train import __version__, signing
from spira_train.config import Config
from spira_train.gate import Serving
from spira_train.outcome import Refused
from spira_train.progress import say
from spira_train.step import PACKAGE, fingerprint, modules, perform
from spira_train.store import REPORT, digest_bytes, digest_file, digest_json, local_lake, read_report, scratch

NAME = "spira"
SERVE = PACKAGE.parent / "serve"
HANDLER = SERVE / "handler.py"
EXAMINERS = ("config.properties", "metrics.yaml", "sandbox.py")  # of `serve/`: another examination, another blessing
CARD = "model-card.md"
STATISTICS = "statistics.json"
# Of validate's results: what the card is written from.
PAPERS = ("metrics.json", "evidence.json", STATISTICS, "drift.json", "verdict.json")
# What the handler imports; the archive carries these with all that they import, so it runs what was validated.
ROOTS = ("audio", "inference", "memory", "novelty")
# The archiver stamps the minute; zip cannot tell a time before 1980.
_EPOCH, _CREATED = (1980, 1, 1, 0, 0, 0), "01/01/1980 00:00:00"


def run(
    *,
    run: Path,
    config: Config,
    sandbox: Callable[[Path, str, Path, Serving], dict[str, Any]] = bless,
    limits: Serving = Serving(),  # noqa: B008 - frozen
    key: Path | None = None,
) -> dict[str, Any]:
    """Write `package/` of a run: `spira-<version>.mar`, package.json, infra.json (its infra blessing), model-card.md.

    sandbox: gives the infra blessing of (archive, version, golden folder, limits). key: the private key that signs all
    this as model.sig; None leaves it unsigned. Raises `Refused` unless `train/` and `validate/` are finished, the
    quality blessing is bound to these weights, and the sandbox blesses the archive.
    """
    signer = signing.fingerprint(key) if key else None
    evidence = blessed(run)
    trained, validated = evidence["train"], evidence["validate"]
    code = {name: digest_file(PACKAGE / f"{name}.py") for name in ["__init__", *modules(*ROOTS)]}
    lineage = {
        "name": NAME,
        "partition": config.partition,
        "partitions": trained["summary"].get("partitions", [config.partition]),
        "weights": trained["outputs"]["model.safetensors"],
        "description": trained["outputs"]["model.json"],
        "blessing": validated["outputs"]["blessing.json"],
        "train": trained["fingerprint"],
        "validate": validated["fingerprint"],
        "inputs": trained["inputs"],
        "config": config.digest(),
        "seed": config.seed,
        "code": {"spira_train": __version__, "archive": digest_json(code)},
        "limits": config.extract.model_dump(include={"min_seconds", "max_seconds", "silence_dbfs", "max_clipped"}),
    }
    papers = read_papers(run, validated)
    # The version is a function of all that the archive holds: other content, other version.
    nameless = render(config, lineage | {"version": ""}, trained, validated, papers)
    content = digest_json(
        {
            "lineage": lineage,
            "code": code,
            "handler": digest_file(HANDLER),
            "card": digest_bytes(nameless.encode()),
            "statistics": validated["outputs"].get(STATISTICS),
        }
    )
    lineage |= {"content": content, "version": f"{config.partition}-{content[:8]}"}
    inputs = {"content": content, "train": trained["fingerprint"], "validate": validated["fingerprint"]}
    inputs["evidence"] = digest_json(validated["outputs"])
    inputs["server"] = digest_json([digest_file(SERVE / name) for name in EXAMINERS])
    if signer:  # another key, another result: whoever changes the key has everything tried and signed anew
        inputs["signer"] = signer
    identity = fingerprint(
        "package", module="package", config=limits.model_dump(), inputs=inputs,
        libraries=("torch-model-archiver", "torchserve"),
    )  # fmt: skip

    def work(folder: Path) -> dict[str, Any]:
        with scratch("spira-package-") as private:
            extra = private / "extra"
            (extra / "spira_train").mkdir(parents=True)
            for module in code:
                shutil.copyfile(PACKAGE / f"{module}.py", extra / "spira_train" / f"{module}.py")
            shutil.copyfile(run / "train" / "model.json", extra / "model.json")
            shutil.copyfile(run / "validate" / "blessing.json", extra / "blessing.json")
            _json(extra / "lineage.json", lineage)
            if STATISTICS in validated["outputs"]:  # what later models' data is compared with while this one is served
                shutil.copyfile(run / "validate" / STATISTICS, extra / STATISTICS)
            (extra / CARD).write_text(render(config, lineage, trained, validated, papers), encoding="utf-8")
            shutil.copyfile(extra / CARD, folder / CARD)
            tree = _archiver(private, lineage["version"], run / "train" / "model.safetensors", extra)
            archive = folder / f"{NAME}-{lineage['version']}.mar"
            normalised(tree, archive)
        _json(folder / "infra.json", sandbox(archive, lineage["version"], run / "validate" / "golden", limits))
        facts = {"archive": digest_file(archive), "model": lineage["weights"], "file": archive.name}
        facts["evidence"] = inputs["evidence"]
        _json(folder / "package.json", lineage | facts)
        if key:  # as the last: nothing that is tampered with later is ever signed, however often this step runs
            signing.sign(folder, key)
        else:
            say("package: not signed: no SPIRA_SIGNING_KEY")
        signed = {"signed_by": signer} if signer else {}
        return {"name": NAME, "version": lineage["version"], "bytes": archive.stat().st_size, **facts, **signed}

    place = run / "package"
    if key and (place / REPORT).exists() and not signing.stands(place, key):
        say("package: what lies there is not what this key signed; it is made anew")
        (place / REPORT).unlink()
    return perform("package", identity, *local_lake(run / "package"), work, inputs)


def blessed(run: Path) -> dict[str, dict[str, Any]]:
    """The reports of `train` and `validate`; raises `Refused` unless the blessing stands and is bound to the weights.

    The files are read again: a report alone proves nothing about what lies beside it now.
    """
    reports = {}
    for step, files in (("train", ("model.safetensors", "model.json")), ("validate", (*PAPERS, "golden/"))):
        report = read_report(*local_lake(run / step))
        if report is None:
            raise Refused(f"{run / step}: not finished; run `spira-train {step}` first")
        for name, expected in report["outputs"].items():
            if name.startswith(files):
                intact(run / step / name, expected)
        reports[step] = report
    file = run / "validate" / "blessing.json"
    if not file.is_file():
        reasons = "; ".join(reports["validate"]["summary"].get("reasons", [])) or "the file is missing"
        raise Refused(f"{file}: no quality blessing ({reasons}); only a blessed model is packaged")
    intact(file, reports["validate"]["outputs"].get("blessing.json"))
    check_blessing(json.loads(file.read_text()), reports["train"]["outputs"], str(file))
    return reports


def check_blessing(blessing: Mapping[str, Any], outputs: Mapping[str, str], place: str) -> None:
    """Raise `Refused` unless `blessing` is a quality blessing of the weights and description in `outputs`."""
    if blessing.get("blessing") != "quality" or blessing.get("verdict") != "blessed":
        raise Refused(f"{place}: is not a quality blessing; run `spira-train validate` again")
    for name, file in (("model", "model.safetensors"), ("description", "model.json")):
        if not blessing.get(name) or blessing[name] != outputs.get(file):
            raise Refused(
                f"{place}: blesses another {file} ({str(blessing.get(name))[:12]}) than this one "
                f"({str(outputs.get(file))[:12]}); run `spira-train validate` again"
            )


def intact(file: Path, expected: str | None) -> None:
    """Raise `Refused` unless `file` still has the digest that its step reported."""
    if not file.is_file():
        raise Refused(f"{file}: missing; run its step again")
    found = digest_file(file)
    if found != expected:
        raise Refused(
            f"{file}: was changed since its step wrote it (SHA-256 {found[:12]}, reported {str(expected)[:12]})"
        )


def read_papers(run: Path, validated: Mapping[str, Any]) -> dict[str, Any]:
    """Name (without .json) -> content of each of `PAPERS` that `validate` reported, empty without; and of `model`."""
    papers = {name: run / "validate" / name for name in PAPERS if name in validated["outputs"]}
    empty: dict[str, Any] = {name.removesuffix(".json"): {} for name in PAPERS}
    read = {name.removesuffix(".json"): json.loads(file.read_text()) for name, file in papers.items()}
    return empty | read | {"model": json.loads((run / "train" / "model.json").read_text())}


def render(
    config: Config,
    lineage: Mapping[str, Any],
    trained: Mapping[str, Any],
    validated: Mapping[str, Any],
    papers: Mapping[str, Any],
) -> str:
    """The model card, in Markdown. papers: what `read_papers` found."""
    # these bring the libraries of figures and statistics, which nothing else here needs
    from spira_train import baseline, probes
    from spira_train.report import described

    pages = Environment(  # noqa: S701 - Markdown, not HTML
        loader=FileSystemLoader(PACKAGE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    names = probes.NAMES | {f"baseline_{name}": words for name, words in baseline.NAMES.items()}
    facts = {"config": config, "lineage": lineage, "names": names, **papers}
    facts |= {"trained": trained["summary"], "validated": validated["summary"]}
    facts |= {
        "blind": [name for name in papers["metrics"] if name.startswith("baseline_")],
        "data": described(papers["statistics"].get("data", {}), {}),
    }
    return pages.get_template(f"{CARD}.j2").render(**facts)


def normalised(tree: Path, archive: Path) -> None:
    """Zip `tree` so that equal content gives equal bytes: sorted, stored, with fixed times and rights."""
    with ZipFile(archive, "w", ZIP_STORED) as out:  # stored: deflate's bytes depend on the zlib at hand
        for file in sorted(p for p in tree.rglob("*") if p.is_file()):
            info = ZipInfo(file.relative_to(tree).as_posix(), _EPOCH)
            info.external_attr, info.create_system = 0o100644 << 16, 3
            out.writestr(info, file.read_bytes())


def _archiver(private: Path, version: str, weights: Path, extra: Path) -> Path:
    """Run the real archiver; returns the folder it made. It stages under TMPDIR by model name, hence a private one."""
    out, staging = private / "out", private / "tmp"
    out.mkdir()
    staging.mkdir()
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--archive-format", "no-archive"]
    command += ["--model-name", NAME, "--version", version, "--serialized-file", str(weights)]
    command += ["--handler", str(HANDLER), "--extra-files", str(extra), "--export-path", str(out)]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(staging)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"torch-model-archiver failed: {done.stderr.strip().splitlines()[-1:]}")
    manifest = out / NAME / "MAR-INF" / "MANIFEST.json"
    _json(manifest, json.loads(manifest.read_text()) | {"createdOn": _CREATED})
    return out / NAME


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
