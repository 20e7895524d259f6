"""What a container costs: a step in one against the same step as a process, image sizes, a rebuild after a change.

    python -m bench.containers [--runs 7]

The step is a cached `extract`, so that what is measured is the start and the end. Each pair runs right after each
other, and the overhead is the median of the pairs' differences. The rebuild is that of every image after one changed
line of the training package, in a copy of this checkout.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import machine
from spira_train import config as configuration
from spira_train import simulate
from spira_train.store import write_atomic

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("spira_train", "serve", "config", "dags", "images", "requirements", "pyproject.toml", ".dockerignore")
# As dags/container_step.py makes it.
HARDENED = ["--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none",
            "--user", "10001:10001", "--tmpfs", "/tmp:size=2g,mode=1777", "--memory", "8g", "--cpus", "2"]  # noqa: S108  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=7)
    runs = options.parse_args().runs
    subprocess.run([sys.executable, "images/build.py"], cwd=ROOT, check=True, capture_output=True)
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        rows = [*overhead(folder, runs), *rebuild(folder)]
    finally:
        shutil.rmtree(folder)
        subprocess.run([sys.executable, "images/build.py"], cwd=ROOT, check=True, capture_output=True)  # the names back
    machine.show("Containers", ("what", "figure", "note"), [*rows, *sizes()])


def overhead(folder: Path, runs: int) -> list[tuple[str, str, str]]:
    """A step in a container beside the same step as a process."""
    lake, run = folder / "lake", folder / "run"
    simulate.run(lake=str(lake), settings=simulate.read_settings({"subjects": 12, "days": 1, "start": "2026-11-01"}))
    config = configuration.resolve(configuration.preset_files("fast"), {"partition": "2026-11-01"})
    write_atomic(run / "config.json", config.canonical().encode())
    subprocess.run(["chown", "-R", "10001:10001", str(folder)], check=True)
    folder.chmod(0o755)
    words = ["spira-train", "extract", "--run", "/run-folder", "--lake", "/lake"]
    mounts = ["-v", f"{lake}:/lake", "-v", f"{run}:/run-folder:ro"]
    container = ["docker", "run", "--rm", *HARDENED, *mounts, "spira_train", *words]
    program = str(Path(sys.executable).with_name("spira-train"))
    process = [program, "extract", "--run", str(run), "--lake", str(lake)]
    pairs = [(seconds(container), seconds(process)) for _ in range(runs + 1)][1:]  # the first warms both up
    inside, outside = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(a - b for a, b in pairs)
    return [
        ("a step in a container", f"{inside:.2f} s", f"median of {runs}, cached extract"),
        ("the same step as a process", f"{outside:.2f} s", f"ratio {inside / outside:.2f}"),
        ("overhead of the container", f"{more:.2f} s", "median of the pairs' differences"),
    ]


def rebuild(folder: Path) -> list[tuple[str, str, str]]:
    """Every image again, after one line of the training package has changed."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    with (copy / "spira_train/audio.py").open("a") as code:
        code.write(f"\n# {time.time()}\n")
    one = seconds([sys.executable, "images/build.py", "spira_train"], copy)
    every = seconds([sys.executable, "images/build.py"], copy)
    return [
        ("rebuild of spira_train, one line changed", f"{one:.1f} s", ""),
        ("rebuild of the others after it", f"{every:.1f} s", "TorchServe's holds the same code"),
    ]


def sizes() -> list[tuple[str, str, str]]:
    """Size of each image, and what it is without the layers that it shares with its environment's."""
    names = json.loads((ROOT / "var/images.json").read_text())
    show = ["docker", "image", "inspect", "-f", "{{.Size}}"]
    return [
        (
            f"image {name}",
            f"{int(subprocess.run([*show, one], check=True, capture_output=True).stdout) / 1e6:,.0f} MB",
            "",
        )
        for name, one in names.items()
    ]


def seconds(command: list[str], cwd: Path = ROOT) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
