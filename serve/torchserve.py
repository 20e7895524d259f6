"""The one place that knows TorchServe: register, verify, promote, rollback, status.

Another model server is a second module with these functions. Nothing here is specific to a speech model but the
golden recordings' format.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from zipfile import BadZipFile, ZipFile

import requests

from serve.transport import Late, Server, call, reason
from spira_train.outcome import Refused, TryAgain
from spira_train.store import alone as held
from spira_train.store import digest_bytes, digest_file, disk_errors

# Registration waits for the worker: importing torch on a busy machine takes its time.
READY_SECONDS = 120.0
# Probabilities of one model on one input may differ by rounding between machines, not by more (style.md, trust bars).
TOLERANCE = 1e-6
# Eight requests may share a forward pass, and nobody waits for company: the shortest wait there is cost a lone client
# 1.5 ms of 8. Without it TorchServe gives a worker two at most: 64 clients get four answers, not five (bench.serve).
BATCH, BATCH_DELAY_MS = 8, 0


def register(server: Server, archive: Path, version: str, store: Path, *, ready: float = READY_SECONDS) -> str:
    """Load `archive` as `version` beside what is served; it does not get the default requests (unless it is the first).

    store: the server's model store as seen from here. Returns "registered", or "present" where the same archive
    already serves under that version. Raises `Refused` where the version is taken by other content or does not get
    READY within `ready` seconds (it is deleted then), `TryAgain` where the server is away.
    """
    stored = store / f"{server.name}-{version}.mar"
    wanted = digest_file(archive)
    known = _version(server, version)
    same = stored.is_file() and digest_file(stored) == wanted
    if known and not same:
        raise Refused(
            f"{server.name} {version} is served from another archive than {archive.name} ({wanted[:12]}); "
            "a version never changes its content: package again, or delete that version first"
        )
    if known and _ready(known):
        return "present"
    if not same:
        _copy(archive, stored)
    if known:
        _scale(server, known)  # a register that was killed, or a worker that died
    else:
        # as many workers as the server was started for
        params = {"url": stored.name, "model_name": server.name, "synchronous": "true"}
        params |= {"batch_size": str(BATCH), "max_batch_delay": str(BATCH_DELAY_MS)}
        answer = _manage(server, "POST", "/models", params=params, timeout=ready)
        if answer.status_code == 500:  # its worker could not load, yet the version may stay: delete it
            ready = 0
        elif answer.status_code not in (200, 409):  # 409: somebody else was quicker
            raise Refused(f"TorchServe refused {stored.name}: {reason(answer)}")
    _wait(server, version, ready)
    return "registered"


def verify(server: Server, version: str | None, golden: Path, *, expected: str | None = None) -> dict[str, Any]:
    """Ask `version` (None: the default path) for the golden recordings and compare with what validation found.

    golden: folder with `golden.json` [{file, probability, windows}] and its WAV files. expected: the version that must
    answer; `version` unless said. Returns {version, recordings, largest_difference, milliseconds (median)}. Raises
    `Refused` where an answer, its version or a probability (beyond 1e-6) is wrong, or there is none in time.
    """
    entries = json.loads((golden / "golden.json").read_text())
    if not entries:
        raise Refused(f"{golden / 'golden.json'}: holds no recordings, so nothing can be verified")
    must, largest, milliseconds = expected or version, 0.0, []
    for entry in entries:
        where, started = f"golden recording {entry['file']}", time.perf_counter()
        try:
            answer = predict(server, (golden / entry["file"]).read_bytes(), version, windows=True)
        except Late:
            raise Refused(f"{where}: {must} gave no answer within {server.seconds:g} s") from None
        milliseconds.append(1000 * (time.perf_counter() - started))
        if answer.status_code != 200:
            raise Refused(f"{where}: {must} answered {reason(answer)}")
        answered, ours = probabilities(answer, where)
        if must and answered != must:
            raise Refused(f"{where}: {answered} answered, expected {must}")
        theirs = [entry["probability"], *entry["windows"]]
        difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=False))
        if len(ours) != len(theirs) or not difference <= TOLERANCE:
            raise Refused(
                f"{where}: {must} gives {ours[0]:.8f}, "
                f"validation found {theirs[0]:.8f} (allowed difference: {TOLERANCE:g})"
            )
        largest = max(largest, difference)
    return {
        "version": answered,
        "recordings": len(entries),
        "largest_difference": largest,
        "milliseconds": round(median(milliseconds), 1),
    }


def probabilities(answer: requests.Response, where: str) -> tuple[str, list[float]]:
    """(version that answered, its probability and those of the windows); raises `Refused` where one is no number."""
    try:
        body = answer.json()
        version, found = str(body["model"]["version"]), [float(x) for x in (body["probability"], *body["windows"])]
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{where}: the answer is not JSON with probability, windows and model") from None
    if not all(0 <= x <= 1 for x in found):
        raise Refused(f"{where}: {version} gives {next(x for x in found if not 0 <= x <= 1)}, not a probability")
    return version, found


def predict(server: Server, content: bytes, version: str | None = None, *, windows: bool = False) -> requests.Response:
    """One recording's bytes to the inference API; the answer as it came (4xx for a recording that cannot be used)."""
    path = f"/predictions/{server.name}" + (f"/{version}" if version else "")
    headers = {"Content-Type": "application/octet-stream"} | ({"X-Spira-Windows": "true"} if windows else {})
    return call(
        server, server.inference, "inference", "POST", path, data=content, headers=headers, timeout=server.seconds
    )


def answering(server: Server) -> str | None:
    """The version that answers whoever asks for none in particular, in its own words; None where there is no model.

    Raises `TryAgain` where the server is away, or its model cannot answer.
    """
    answer = predict(server, b"not a recording")  # what refuses it names itself as well
    if answer.status_code == 404:
        return None
    try:
        return str(answer.json()["model"]["version"])
    except (ValueError, KeyError, TypeError):
        raise TryAgain(f"TorchServe at {server.inference} answered {reason(answer)}") from None


def promote(server: Server, version: str) -> bool:
    """Make `version` the default one; False where it already was. Raises `Refused` unless it has a READY worker."""
    known = _version(server, version)
    if not known or not _ready(known):
        raise Refused(f"{server.name} {version}: has no READY worker, so it cannot become the default version")
    if status(server)["default"] == version:
        return False
    answer = _manage(server, "PUT", f"/models/{server.name}/{version}/set-default")
    if answer.status_code != 200:
        raise Refused(f"TorchServe refused to make {version} the default: {reason(answer)}")
    return True


def rollback(server: Server, version: str) -> bool:
    """Give the default requests back to `version`, starting a worker for it where it has none."""
    known = _version(server, version)
    if known and not _ready(known):
        _scale(server, known)
        _wait(server, version, READY_SECONDS, delete=False)
    return promote(server, version)


def unregister(server: Server, version: str) -> bool:
    """Delete `version` from the server (its archive stays in the store); False where it was not there."""
    answer = _manage(server, "DELETE", f"/models/{server.name}/{version}")
    if answer.status_code == 403:
        raise Refused(f"{server.name} {version} is the default version; make another one the default first")
    return answer.status_code == 200


def discard(server: Server, version: str, store: Path) -> None:
    """Unload `version` where it is loaded, and delete its archive from the model store."""
    if _version(server, version):
        unregister(server, version)
    with disk_errors(str(store)):
        (store / f"{server.name}-{version}.mar").unlink(missing_ok=True)


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Hold a model store: whoever else promotes a version from it waits. The kernel lets go of it with the process."""
    with disk_errors(str(store)):
        store.mkdir(parents=True, exist_ok=True)
    with held(store):
        yield


def status(server: Server) -> dict[str, Any]:
    """{"default": version or None, "versions": {version: {"ready", "workers", "archive"}}}."""
    versions = {entry["modelVersion"]: entry for entry in _describe(server, "all")}
    default = next((entry["modelVersion"] for entry in _describe(server, None)), None) if versions else None
    shown = {
        version: {"ready": _ready(entry), "workers": len(entry["workers"]), "archive": entry["modelUrl"]}
        for version, entry in versions.items()
    }
    return {"default": default, "versions": shown}


def processes(server: Server, version: str) -> set[int]:
    """The ids of the processes that answer as `version`, as numbered where the server runs."""
    known = _version(server, version)
    return {int(worker["pid"]) for worker in known["workers"]} if known else set()


def describe(server: Server, version: str) -> dict[str, Any]:
    """What the handler of `version` says of itself: model, features, decision, blessing, lineage."""
    answer = _manage(server, "GET", f"/models/{server.name}/{version}", params={"customized": "true"})
    if answer.status_code != 200:
        raise Refused(f"{server.name} {version}: does not describe itself: {reason(answer)}")
    return dict(answer.json()[0]["customizedMetadata"])


def read_member(archive: Path, name: str) -> bytes:
    """One file of an archive; raises `Refused` where the archive is damaged or does not hold it."""
    try:
        with ZipFile(archive) as content:
            return content.read(name)
    except FileNotFoundError:
        raise Refused(f"{archive}: not found; run `spira-train package` first") from None
    except (BadZipFile, KeyError, OSError) as error:
        raise Refused(f"{archive}: damaged, or without {name} ({error}); run `spira-train package` again") from None


def member_digest(archive: Path, name: str) -> str:
    """SHA-256 of one file of an archive, in hex."""
    return digest_bytes(read_member(archive, name))


def _wait(server: Server, version: str, seconds: float, *, delete: bool = True) -> None:
    deadline = time.monotonic() + seconds
    while True:
        known = _version(server, version)
        if known and _ready(known):
            return
        # A worker that failed to load is stopped and started again without end; what is not READY then never will be.
        failed = not known or not known["workers"]
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if delete and known:
        current = status(server)
        if current["default"] != version or len(current["versions"]) == 1:
            unregister(server, version)
    raise Refused(
        f"{server.name} {version} did not get READY and was removed; what was served before goes on. "
        "The server's logs/model_log.log says why it could not load"
    )


def _scale(server: Server, known: Mapping[str, Any]) -> None:
    """Start the workers that a version lacks."""
    count = max(1, int(known["minWorkers"]))
    params = {"min_worker": count, "max_worker": count, "synchronous": "true"}
    path = f"/models/{server.name}/{known['modelVersion']}"
    _manage(server, "PUT", path, params=params, timeout=READY_SECONDS)


def _version(server: Server, version: str) -> dict[str, Any] | None:
    return next((entry for entry in _describe(server, "all") if entry["modelVersion"] == version), None)


def _ready(entry: Mapping[str, Any]) -> bool:
    return any(worker["status"] == "READY" for worker in entry["workers"])


def _describe(server: Server, version: str | None) -> list[dict[str, Any]]:
    answer = _manage(server, "GET", f"/models/{server.name}" + (f"/{version}" if version else ""))
    if answer.status_code == 404:
        return []
    if answer.status_code != 200:
        raise TryAgain(f"TorchServe at {server.management} answered {reason(answer)}")
    return list(answer.json())


def _manage(server: Server, verb: str, path: str, **options: Any) -> requests.Response:
    return call(server, server.management, "management", verb, path, **options)


def _copy(archive: Path, stored: Path) -> None:
    with disk_errors(str(stored)):
        stored.parent.mkdir(parents=True, exist_ok=True)
        staging = stored.with_name(f".{stored.name}.{uuid.uuid4().hex[:12]}.partial")
        try:
            shutil.copyfile(archive, staging)
            staging.chmod(0o644)
            staging.replace(stored)
        finally:
            staging.unlink(missing_ok=True)
