"""Recordings into the lake of the stack in containers, results out of it: `python3.11 -m local.volumes deliver FOLDER`.

The lake lives in a volume of the engine. A container without a network, which is not root, moves the files.
"""

import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from local import compose

# What has landed is never changed: a day or a noise folder that is there already stays as it is.
_LAND = """
set -e
new=$(mktemp -d /lake/.incoming.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
mkdir -p /lake/landing
for there in "$new"/landing/* "$new"/noise "$new"/DATA_CARD.md; do
  to=/lake${there#"$new"}
  test -e "$there" || continue
  if test -e "$to"; then echo "there already: $to" >&2; else mv "$there" "$to"; echo "${to#/lake/}"; fi
done
"""


def main(arguments: Sequence[str]) -> None:
    """deliver FOLDER"""
    match list(arguments):
        case ["deliver", folder]:
            chosen = compose.running()
            if chosen is None:
                raise SystemExit("the stack in containers is not up, or not well; `make compose-up` starts it")
            landed = deliver(chosen, Path(folder))
            print("\n".join(["landed:", *landed] if landed else ["everything is there already"]))
        case _:
            raise SystemExit("usage: python3.11 -m local.volumes deliver FOLDER")


def deliver(chosen: Mapping[str, str], folder: Path) -> list[str]:
    """Copy `landing/`, `noise/` and `DATA_CARD.md` of a lake into the stack's; returns what was not there yet.

    A day appears as a whole or not at all. Raises `SystemExit` where the folder is no lake, or the copy fails.
    """
    if not (folder / "landing").is_dir():
        raise SystemExit(
            f"{folder}: no folder landing/ with a folder for each day (YYYY-MM-DD) in it; see docs/lake.md"
        )
    with _container(chosen, "lake", "rw", ["sh", "-c", _LAND], stdin=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], process.stdin), mode="w|") as tar:
                for name in ("landing", "noise", "DATA_CARD.md"):
                    if (folder / name).exists():
                        tar.add(folder / name, name)
        except BrokenPipeError:
            pass  # the container says why
        said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder}: could not be delivered: {errors.decode(errors='replace').strip()}")
    return said.decode().split()


def fetch(chosen: Mapping[str, str], place: str, path: str, into: Path) -> Path:
    """Copy a file or a folder of the volume `place` (lake, runs, keys) to a folder here; returns where it is now."""
    into.mkdir(parents=True, exist_ok=True)
    with _container(chosen, place, "ro", ["tar", "-C", f"/{place}", "-cf", "-", path]) as process:
        with tarfile.open(fileobj=cast(IO[bytes], process.stdout), mode="r|") as tar:
            tar.extractall(into, filter="data")
        _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{path}: not in the stack's {place}: {errors.decode(errors='replace').strip()}")
    return into / path


def _container(
    chosen: Mapping[str, str], place: str, right: str, words: list[str], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    limits = ["--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    volume = f"{chosen['SPIRA_STACK_NAME']}-{place}:/{place}:{right}"
    command = ["docker", "run", "--rm", "-i", "--user", "10001:10001", *limits, "-v", volume]
    return subprocess.Popen(
        [*command, chosen["SPIRA_TRAIN_IMAGE"], *words], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


if __name__ == "__main__":
    main(sys.argv[1:])
