"""Wheels of an environment, fetched by pip with this machine's settings; they become the context of its build."""

import os
import platform
import re
import shutil
import sys
import zipfile
from pathlib import Path

from command import Refusal, quiet, say, told

ADVICE = "behind a mirror or a proxy: PIP_INDEX_URL, PIP_CONFIG_FILE, CA_BUNDLE; with no network: WHEELS=DIR OFFLINE=1"


def fetch(lock: Path, context: Path) -> None:
    """Put what a lock names into `context`/locked, checked by pip against the lock's hashes, and the lock beside it.

    Asks nobody where all of it is there already; the build checks the hashes once more.
    """
    folder, kept = context / "locked", context / "requirements.lock"
    (context / "torch").mkdir(parents=True, exist_ok=True)
    wanted = set(_pins(lock.read_text()))
    if not kept.exists() or kept.read_text() != lock.read_text() or not wanted <= set(_found(folder)):
        _pip(f"requirements/{lock.name}", folder, "--no-deps", "--require-hashes", "-r", str(lock))
        shutil.copy(lock, kept)
    for pin, wheel in _found(folder).items():
        if pin not in wanted:  # of an earlier lock
            wheel.unlink()


def fetch_torch(pin: Path, lock: Path, context: Path, variant: str) -> None:
    """Put torch into `context`/torch, and the CUDA libraries with it where `variant` is cuda.

    torch has no hash in a lock, for its builds differ. Raises `Refusal` where pip finds the build of the other variant.
    """
    folder = context / "torch"
    shutil.rmtree(folder)
    _pip(f"requirements/{pin.name}", folder, "--no-deps", "-r", str(pin))
    wheel = next(folder.glob("torch-*.whl"))
    cuda = _cuda(wheel)
    if (variant == "cuda") != bool(cuda):
        raise Refusal(
            f"VARIANT={variant}, but pip found {wheel.name}, which is built for {cuda or 'the CPU'}: name an index "
            "that has the other (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), hand the wheel in (WHEELS=DIR), or change VARIANT"
        )
    if cuda:
        # torch pins the CUDA libraries that it needs; everything else stays at the lock's versions.
        constraints = context / "constraints.txt"
        constraints.write_text("\n".join(_pins(lock.read_text())))
        locked = ["--find-links", str(context / "locked")]
        _pip(f"requirements/{pin.name}", folder, "--constraint", str(constraints), *locked, "-r", str(pin))


def _pip(what: str, folder: Path, *words: str) -> None:
    if sys.version_info[:2] != (3, 11) or platform.system() != "Linux":
        raise Refusal(
            f"{sys.executable}: wheels are fetched for the images by a Python of their kind, which is 3.11 on Linux; "
            f"this is {platform.python_version()} on {platform.system()}"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--only-binary", ":all:"]
    command += ["--dest", str(folder), *words]
    if handed := os.environ.get("WHEELS"):
        if not Path(handed).is_dir():
            raise Refusal(f"WHEELS={handed}: no such folder")
        command += ["--find-links", str(Path(handed).absolute())]
    if os.environ.get("OFFLINE", "0") not in ("", "0"):
        command += ["--no-index"]
    env = dict(os.environ)
    if bundle := env.get("CA_BUNDLE"):
        env.setdefault("PIP_CERT", bundle)
    say(f"{what}: fetching wheels")
    done = quiet(command, env)
    if done.returncode:
        raise Refusal(told(f"{what}: a wheel cannot be had", done.stderr) + f"\n{ADVICE}")


def _pins(lock: str) -> list[str]:
    return [f"{_normal(name)}=={version}" for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", lock)]


def _found(folder: Path) -> dict[str, Path]:
    names = {wheel: wheel.name.split("-") for wheel in folder.glob("*.whl")}
    return {f"{_normal(name)}=={version}": wheel for wheel, (name, version, *_) in names.items()}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _cuda(wheel: Path) -> str:
    # the CUDA that a torch wheel was built for, or nothing
    with zipfile.ZipFile(wheel) as archive:
        found = re.search(r"(?m)^cuda\b[^=]*= *'([^']+)'", archive.read("torch/version.py").decode())
    return f"CUDA {found[1]}" if found else ""
