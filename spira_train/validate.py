"""Hold a trained model against the gate on the frozen test set; write the quality blessing or say why not."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from spira_train import brief, champion, drift, evidence, featurise, inference, noise, probes, report
from spira_train import gate as gates
from spira_train import live as counted
from spira_train.audio import SAMPLE_RATE, as_float, from_flac
from spira_train.champion import Champion
from spira_train.config import Config
from spira_train.dataset import window_of
from spira_train.metrics import Sample
from spira_train.outcome import BadInput, Exit
from spira_train.progress import say
from spira_train.registry import Registry
from spira_train.rng import Random
from spira_train.step import fingerprint, perform
from spira_train.store import Lake, digest_file, digest_json, local_lake, read_report, scratch

LIBRARIES = ("torch", "torchaudio", "numpy", "scikit-learn", "scipy", "matplotlib", "soundfile")
BRIEF = "brief.md"
Row = Mapping[str, Any]


def run(
    *,
    run: Path,
    lake: Lake,
    config: Config,
    gate: Path,
    registry: Registry | None = None,
    live: Path | None = None,
) -> dict[str, Any]:
    """Write `validate/` of a run. The report's summary carries `exit` 20 and the reasons where the gate refuses.

    registry: where the champion is on record; without one there is none to compare with, and `register` will refuse the
    blessing where it finds one. live: what the app counts of later diagnoses; the report shows it as it is now. It
    is no input: a finished validation is not repeated because it has moved.
    """
    plan, in_use = gates.read(gate), counted.read(live) if live else {}
    trained = read_report(*local_lake(run / "train"))
    if trained is None:
        raise BadInput(f"{run / 'train'}: no trained model; run `spira-train train` first")
    everybody = {
        key: featurise.manifest(lake, key)
        for key in window_of(config, lake.landed())
        if read_report(lake.fs, lake.path("audio", key))
    }
    rows = [row | {"partition": key} for key, part in everybody.items() for row in part if row["split"] == "test"]
    others = [row | {"partition": key} for key, part in everybody.items() for row in part if row["split"] != "test"]
    tracks = noise.catalogue(lake, salt=config.split.salt, test=config.noise.test)
    inputs = {
        "model": trained["outputs"]["model.safetensors"],
        "description": trained["outputs"]["model.json"],
        "curves": trained["outputs"]["curves.json"],
        "test_set": digest_json(sorted([row["recording"], row["label"]] for row in rows)),
        "manifests": digest_json({key: sorted(map(digest_json, part)) for key, part in everybody.items()}),
        "noise": noise.noise_digest(tracks),
        "gate": plan.digest(),
        "page": digest_file(report.TEMPLATE),
    }
    choices = {"seed": config.seed, "threads": config.threads, "validation": config.validation.model_dump(mode="json")}
    choices |= {"drift": config.drift.model_dump(mode="json"), "partition": config.partition}

    def identify(rival: Champion | None) -> str:
        given = inputs | ({"champion": rival.archive} if rival else {})
        return fingerprint("validate", module="validate", config=choices, inputs=given, libraries=LIBRARIES)

    rival = rival_of(run, registry, inputs["model"], identify)
    identity = identify(rival)
    if rival:
        inputs["champion"] = rival.archive

    def work(folder: Path) -> dict[str, Any]:
        torch.set_num_threads(config.threads)
        predictor = inference.load(run / "train")
        decision = predictor.description["decision"]

        def speech(row: Row) -> probes.Signal:
            return as_float(from_flac(lake.read("audio", row["partition"], row["file"])))  # (T,)

        # the gate's noise must not follow a run's seed: every model is asked the same questions
        questions = probes.Questions(
            plan.noise.insertion(), noise.load(lake, tracks, "test"), plan.digest(), probes.voices(rows, speech)
        )
        asked = probes.ask(lambda _, waves: predictor.calibrated(waves), rows, speech, questions)
        labels, subjects = [row["label"] for row in rows], [row["subject"] for row in rows]
        sample = Sample.of(labels, subjects, config.validation.bootstrap, Random(config.seed).stream("bootstrap"))
        least = plan.slices.min_per_class if plan.slices else plan.min_per_class
        found = evidence.gather(rows, others, sample, asked, decision, least)
        blind = found.pop("blind")
        found["champion"], reference, theirs = None, None, None
        if rival and registry and "clean" in found["metrics"]:
            sounds = ((probe, questions.put(probe, speech(row), row)) for probe in champion.ASKED for row in rows)
            with scratch("spira-champion-") as private:
                theirs, reference = champion.ask(registry, rival, sounds, private, config.threads)
            found["champion"] = champion.compare(rows, sample, (asked, decision), theirs, least) | {
                "version": rival.version
            }

        heard = featurise.means(lake, config, list(everybody))
        described = {
            "data": drift.statistics([{**row, "features": heard.get(row["recording"])} for row in others]),
            "scores": drift.statistics([{"score": score} for score in asked.get("clean", [])]),
        }
        drifted = compared(config, rows, others, heard, asked, (rival, reference, theirs))

        per_class = {name: labels.count(label) for label, name in ((0, "controls"), (1, "patients"))}
        checks = gates.judge(plan, found, per_class)
        failed = [check.text for check in checks if not check.passed]
        verdict = {
            "verdict": "refused" if failed else "blessed",
            "reasons": failed,
            "checks": [asdict(check) for check in checks],
            "unproven": gates.unproven(found),
            "champion": rival.version if rival else None,
            "champion_archive": rival.archive if rival else None,
            "test_set": {"digest": inputs["test_set"], **per_class},
        }
        _write(folder / "metrics.json", found["metrics"])
        _write(folder / "evidence.json", {name: value for name, value in found.items() if name != "metrics"})
        _write(folder / "statistics.json", described)
        _write(folder / "drift.json", drifted)
        _write(folder / "verdict.json", verdict)
        if not failed:
            binding = {name: inputs[name] for name in ("model", "description", "test_set", "gate")}
            _write(folder / "blessing.json", {"blessing": "quality", **verdict, **binding})
        _predictions(folder / "predictions.parquet", rows, asked)
        if rows:
            _golden(folder / "golden", predictor, lake, rows, config.validation.golden)
        page = report.render(
            config=config,
            trained=trained,
            found=found,
            verdict=verdict,
            rows=rows,
            asked=asked,
            curves=json.loads((run / "train" / "curves.json").read_text()),
            description=predictor.description,
            statistics=described,
            drifted=drifted,
            misheard=_misheard(rows, asked, predictor, speech),
            blind=blind,
            live=in_use,
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        simulated = bool(trained.get("summary", {}).get("simulated"))
        (folder / BRIEF).write_text(brief.brief(found, verdict, drifted, simulated=simulated), encoding="utf-8")
        return summary(found, verdict, drifted)

    done = perform("validate", identity, *local_lake(run / "validate"), work, inputs)
    for text in done["summary"]["drift"]:
        say(f"validate: drift: {text}")
    return done | {"link": note(registry, run, config, done)} if registry else done


def compared(
    config: Config,
    rows: Sequence[Row],
    others: Sequence[Row],
    heard: Mapping[str, Sequence[float]],
    asked: Mapping[str, Sequence[float]],
    against: tuple[Champion | None, Mapping[str, Any] | None, Mapping[str, Any] | None],
) -> dict[str, Any]:
    """How the run's own partition differs from what the champion was trained on, or else from the earlier partitions.

    rows, others: recordings of the test set, and those trained on; heard: recording -> its mean features; asked: the
    model's answers to `rows`; against: the champion, its statistics, its answers. Returns {partition, reference,
    findings}.
    """
    rival, reference, theirs = against
    own, name = config.partition, None
    scores = asked.get("clean", [])
    known = [{**row, "features": heard.get(row["recording"])} for row in [*others, *rows]]
    today, before = ([row for row in known if (row["partition"] == own) is new] for new in (True, False))
    if rival and reference and theirs:
        name, scores = f"what the champion {rival.version} was trained on", theirs["answers"]["clean"]
    elif before:
        name = "the earlier partitions"
        past = [{"score": s} for s, row in zip(scores, rows, strict=False) if row["partition"] != own]
        reference = {"data": drift.statistics(before), "scores": drift.statistics(past)}
    found: list[drift.Finding] = []
    if reference and name:
        new = [{"score": s} for s, row in zip(scores, rows, strict=False) if row["partition"] == own]
        found = drift.compare(reference["data"], today, config.drift)
        if new and reference["scores"]["count"]:
            found += drift.compare(reference["scores"], new, config.drift)
    return {"partition": own, "reference": name, "findings": [asdict(finding) for finding in found]}


def summary(found: Mapping[str, Any], verdict: Mapping[str, Any], drifted: Mapping[str, Any]) -> dict[str, Any]:
    """The step's summary: the verdict and the figures that people look at first."""
    counts = {name: verdict["test_set"][name] for name in ("controls", "patients")}
    lines: dict[str, Any] = {"verdict": verdict["verdict"], "reasons": verdict["reasons"], "test_set": counts}
    lines |= {"champion": verdict["champion"], "unproven": len(verdict["unproven"])}
    lines["drift"] = [finding["text"] for finding in drifted["findings"] if finding["drifted"]]
    if clean := found["metrics"].get("clean"):
        lines |= {name: round(clean[name]["value"], 4) for name in ("accuracy", "auc", "f1")}
    if verdict["reasons"]:
        lines |= {"exit": int(Exit.REFUSED), "message": "refused by the gate: " + "; ".join(verdict["reasons"])}
    return lines


def note(registry: Registry, run: Path, config: Config, report: Mapping[str, Any]) -> str:
    """Put the verdict and the report beside the training's curves in MLflow, once; returns where the report is."""
    summary = report["summary"]
    run_id = run_of(registry, run, config, report)
    tags = {"verdict": summary["verdict"], "reasons": "; ".join(summary["reasons"])}
    tags |= {"validate": report["fingerprint"], "drift": "; ".join(summary["drift"])}
    files = {f"validate/{name}": run / "validate" / name for name in ("report.html", "metrics.json", "verdict.json")}
    return f"{registry.note(run_id, tags, files)}/validate/report.html"


def run_of(registry: Registry, run: Path, config: Config, report: Mapping[str, Any]) -> str:
    """The id of the run in MLflow that holds this validation's evidence, made where there is none yet."""
    known = run / "mlflow.json"
    earlier = json.loads(known.read_text())["run_id"] if known.is_file() else None
    told, same = {"partition": config.partition, "run": run.name}, {"validate": report["fingerprint"]}
    return registry.run(earlier, run.name, told, same)


def rival_of(
    run: Path, registry: Registry | None, weights: str, identify: Callable[[Champion | None], str]
) -> Champion | None:
    """The champion that the model with these `weights` has to stand up to.

    Where this very validation (`identify`: rival -> fingerprint) promoted the model, now or long ago, that is the
    champion that it was held against then, so that running a finished run again changes nothing.
    """
    if registry is None:
        return None
    versions = registry.versions()
    finished = read_report(*local_lake(run / "validate"))
    if finished:
        archive, told = finished["inputs"].get("champion"), {"weights": weights, "validate": finished["fingerprint"]}
        then = next((champion.of(v) for v in versions.values() if v.tags.get("archive") == archive), None)
        promoted = (v.tags for v in versions.values() if "promoted" in v.tags)
        if identify(then) == finished["fingerprint"] and any(told.items() <= tags.items() for tags in promoted):
            return then
    return champion.find(registry)


def _golden(
    folder: Path, predictor: inference.Predictor, lake: Lake, rows: Sequence[Mapping[str, Any]], count: int
) -> None:
    """A few test recordings of both classes with their answers: the model server must repeat them."""
    folder.mkdir()
    ordered = sorted(rows, key=lambda row: row["recording"])
    picked = [row for label in (0, 1) for row in [r for r in ordered if r["label"] == label][: max(1, count // 2)]]
    entries = []
    for number, row in enumerate(picked):
        speech = as_float(from_flac(lake.read("audio", row["partition"], row["file"])))  # (T,)
        file = folder / f"{number:02d}.wav"
        soundfile.write(file, speech, SAMPLE_RATE, subtype="PCM_16")
        (answer,) = predictor.predict([torch.from_numpy(speech)])
        entry = {"file": file.name, "label": row["label"], "sha256": digest_file(file)}
        entries.append(entry | {"probability": answer.probability, "windows": answer.windows})
    _write(folder / "golden.json", entries)


def _misheard(
    rows: Sequence[Row],
    asked: Mapping[str, Sequence[float]],
    predictor: inference.Predictor,
    speech: Callable[[Row], probes.Signal],
) -> list[dict[str, Any]]:
    """The recording of each class that was answered most wrongly: {label, probability, windows, signal}."""
    found = []
    for label in (0, 1):
        scores = [(s, row) for s, row in zip(asked.get("clean", []), rows, strict=False) if row["label"] == label]
        if scores:
            probability, row = (min if label else max)(scores, key=lambda pair: pair[0])
            signal = speech(row)  # (T,)
            (answer,) = predictor.predict([torch.from_numpy(signal)])
            windows = [predictor.calibrate(window) for window in answer.windows]
            found.append({"label": label, "probability": probability, "windows": windows, "signal": signal})
    return found


def _predictions(file: Path, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[float]]) -> None:
    columns = {name: [row[name] for row in rows] for name in ("recording", "partition", "label")}
    pq.write_table(pa.table(columns | {name: np.array(values) for name, values in answers.items()}), file)


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False))
