"""The stack in containers: `python3.11 -m local.compose up [--gpu] | down | status | secrets`.

Needs a Docker engine, the images (`make images`) and either docker-compose 1.29 or Compose v2; no Python package.
What docker-compose.yaml's variables stand for is written to `var/compose.env` at each `up`, from the environment;
secrets are generated once, into `var/secrets/`. All data is in the engine's volumes and survives `down`.
"""

import base64
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from local import engine
from local.ports import DEFAULTS, IN_CONTAINERS, is_free
from local.services import ROOT, alone, demo_key, first_password, var

START_SECONDS, RESTARTS = 300.0, 3
EVERYWHERE = ("0.0.0.0", "::", "[::]")  # noqa: S104 - nothing is bound here
PORTS = {
    "airflow-apiserver": "AIRFLOW_PORT",
    "mlflow": "MLFLOW_PORT",
    "torchserve": "INFERENCE_PORT",
    "gateway": "GATEWAY_PORT",
    "prometheus": "PROMETHEUS_PORT",
    "proxy": "APP_PORT",
}
NAMES = ("train", "torchserve", "mlflow", "airflow", "postgres", "engine_proxy", "gateway", "prometheus")
NAMES += ("app", "nats", "proxy")
IMAGES = tuple(f"spira_{name}" for name in NAMES)
# Settings handed on where they are set; docker-compose.yaml has their defaults.
PASSED = (
    "SPIRA_BIND", "SPIRA_MEMORY", "SPIRA_CPUS", "SPIRA_GPUS", "SPIRA_PRESET", "SPIRA_KEEP", "SPIRA_PARALLELISM",
    "SPIRA_RETRAIN", "SPIRA_GRAFANA_IMAGE", "GRAFANA_PORT", "SPIRA_TRAIN_ON_CLOSE", "SPIRA_TLS", "SPIRA_HOST_NAME",
    "SPIRA_APP_BIND", "SPIRA_MLFLOW_UI", "SPIRA_APPROVAL_HOURS",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """up [--gpu] | down | status | secrets"""
    match list(arguments):
        case ["up", *flags] if set(flags) <= {"--gpu"}:
            up(gpu="--gpu" in flags)
        case ["down"]:
            down()
        case ["status"]:
            status()
        case ["secrets"]:
            made = make_secrets(var() / "secrets")
            print(f"{var() / 'secrets'}: {', '.join(made) or 'all there already'}")
        case _:
            raise SystemExit("usage: python3.11 -m local.compose up [--gpu] | down | status | secrets")


def up(*, gpu: bool = False) -> None:
    """Start the stack, or bring it up to date, and wait until every service is healthy.

    Raises `SystemExit` with one message where that fails; what did start goes on running, to be looked at.
    """
    command = _command()
    with alone("compose"):
        chosen = settings(os.environ, engine.images(_built(), IMAGES), engine.socket(os.environ), var(), gpu=gpu)
        chosen |= _ports(chosen["SPIRA_STACK_NAME"])
        chosen.setdefault("SPIRA_MLFLOW_UI", mlflow_page(chosen, socket.gethostname()))
        make_secrets(var() / "secrets")
        _write(var() / "compose.env", "".join(f"{name}={value}\n" for name, value in chosen.items()), 0o644)
        _log().parent.mkdir(parents=True, exist_ok=True)
        services = _compose(command, "config", "--services").split()
        with _log().open("w") as log:
            starting = subprocess.Popen([*command, "up", "-d"], cwd=ROOT, env=_environment(), stdout=log, stderr=log)
        try:
            _wait(chosen["SPIRA_STACK_NAME"], sorted(services), lambda: starting.poll())
        finally:
            starting.terminate()
            starting.wait()
    print("\n".join(["", *addresses(chosen)]))


def down() -> None:
    """Stop and remove the containers, those of steps as well; volumes, with all data, stay."""
    command = _command()
    with alone("compose"):
        chosen = _settings()
        if not chosen:
            print(f"nothing to stop: no {var() / 'compose.env'}, so no stack was started from here")
            return
        print(f"stopping {chosen['SPIRA_STACK_NAME']} ...")
        # The scheduler first has the time to end its tasks; a step that it leaves behind holds the steps' network.
        _compose(command, "stop")
        if left := engine.docker("ps", "-aq", "--filter", f"label=spira.stack={chosen['SPIRA_STACK_NAME']}").split():
            engine.docker("rm", "-f", *left)
            print(f"{len(left)} steps were at work; their tasks are tried again after the next start")
        _compose(command, "down")
    print(f"stopped; the data is in the engine's volumes {chosen['SPIRA_STACK_NAME']}-*")


def status() -> None:
    """Say what runs, how it is, and where; and which model it serves, since when and why."""
    chosen = running()
    if not chosen:
        print("not running; `make compose-up` starts it")
        return
    found = engine.states(chosen["SPIRA_STACK_NAME"])
    print("\n".join([*table(sorted(found), found, chosen), "", *addresses(chosen), ""]), flush=True)
    subprocess.run(asking(chosen, terminal=sys.stdout.isatty()), check=False)


def asking(chosen: Mapping[str, str], *, terminal: bool = False) -> list[str]:
    """The command that asks the stack from within what it serves: there are the tokens, and who renews them."""
    stack = chosen["SPIRA_STACK_NAME"]
    words = ["docker", "run", "--rm", *(["--tty"] if terminal else []), "--user", "10001:10001", "--read-only"]
    words += ["--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]  # noqa: S108
    words += ["--network", f"{stack}-steps", "--volume", f"{stack}-keys:/keys:ro"]
    words += ["--volume", f"{stack}-live:/live:ro", chosen["SPIRA_TRAIN_IMAGE"]]
    words += ["spira-train", "status", "--mlflow", "http://mlflow:5000", "--keys", "/keys/key_file.json"]
    words += ["--live", "/live/live.json"]
    return [*words, "--inference", "http://torchserve:8085", "--management", "http://torchserve:8086"]


def running() -> dict[str, str] | None:
    """The settings of the stack that was started from here, if any of it runs; else None."""
    chosen = _settings()
    found = engine.states(chosen["SPIRA_STACK_NAME"]).values() if chosen else ()
    return chosen if any(state != "done" and not state.startswith("ended") for state in found) else None


def settings(
    env: Mapping[str, str], images: Mapping[str, str], socket: Path, folder: Path, *, gpu: bool = False
) -> dict[str, str]:
    """What docker-compose.yaml's variables stand for, ports excepted.

    images: variable -> id. socket: the engine's. folder: where `secrets/` is. gpu: grant all GPUs where `SPIRA_GPUS`
    does not say how many.
    """
    name = env.get("SPIRA_STACK_NAME") or "spira"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise SystemExit(f"SPIRA_STACK_NAME is {name!r}; allowed: small letters, digits and hyphens")
    chosen = {setting: env[setting] for setting in PASSED if env.get(setting)}
    if gpu and chosen.get("SPIRA_GPUS", "none") == "none":
        chosen["SPIRA_GPUS"] = "all"
    overlay = ["docker-compose.gpu.yaml"] if chosen.get("SPIRA_GPUS", "none") != "none" else []
    overlay += ["docker-compose.grafana.yaml"] if "SPIRA_GRAFANA_IMAGE" in chosen else []
    return {
        "COMPOSE_PROJECT_NAME": name,
        "COMPOSE_FILE": ":".join(str(ROOT / file) for file in ["docker-compose.yaml", *overlay]),
        "SPIRA_STACK_NAME": name,
        "SPIRA_SECRETS": str(folder / "secrets"),
        "SPIRA_DOCKER_GID": str(socket.stat().st_gid),
        "SPIRA_ENGINE_SOCKET": str(socket),
        **images,
        **chosen,
    }


def make_secrets(folder: Path, *names: str) -> list[str]:
    """Generate the secrets that are missing, of `names` or of all; returns their names. What is there is never touched.

    Only their owner gets into the folder. The files themselves are readable: inside a container they belong to the
    same user as here, who is not the one that the service runs as.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    contents: dict[str, Callable[[], str]] = {
        "postgres_password": lambda: secrets.token_urlsafe(24),
        "airflow_fernet_key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "airflow_jwt_secret": lambda: secrets.token_urlsafe(48),
        "airflow_api_secret_key": lambda: secrets.token_urlsafe(32),
        "grafana_password": lambda: secrets.token_urlsafe(16),
        "gateway_demo_key": lambda: f"spira_{secrets.token_urlsafe(32)}",
        "gateway_app_key": lambda: f"spira_{secrets.token_urlsafe(32)}",
        "app_first_password": lambda: secrets.token_urlsafe(15),
        "app_database_password": lambda: secrets.token_urlsafe(24),
        "nats_token": lambda: secrets.token_hex(32),
        "pseudonym_key": lambda: secrets.token_hex(32),  # with another one nobody's earlier recordings are found
        "airflow_passwords.json": lambda: json.dumps({"admin": secrets.token_urlsafe(12)}),
    }
    missing = [name for name in names or contents if not (folder / name).exists()]
    for name in missing:
        _write(folder / name, contents[name](), 0o444)
    return missing


def addresses(chosen: Mapping[str, str]) -> list[str]:
    """Where the services are, how to log in, how to get at the tokens: a line each."""
    user, password = credentials(chosen)
    keys = f"{' '.join(_command())} exec -T torchserve cat /torchserve/key_file.json"
    return [
        f"Airflow     {address('airflow-apiserver', chosen)}  user {user}, password {password}",
        f"MLflow      {address('mlflow', chosen)}",
        f"TorchServe  {address('torchserve', chosen)}  its tokens: {keys}",
        f"Gateway     {address('gateway', chosen)}/docs  key of the client demo in {demo_key()}",
        f"App         {address('proxy', chosen)}  user demo, password in {first_password()}",
        f"Prometheus  {address('prometheus', chosen)}/classic/alerts",
    ]


def address(service: str, chosen: Mapping[str, str]) -> str:
    """The URL of a service on this machine; empty where it publishes nothing."""
    if service not in PORTS:
        return ""
    bind = "SPIRA_APP_BIND" if service == "proxy" else "SPIRA_BIND"
    host = chosen.get(bind, "127.0.0.1").replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - nothing is bound here
    return f"http{'s' * (service == 'proxy')}://{host}:{chosen[PORTS[service]]}"


def mlflow_page(chosen: Mapping[str, str], machine: str) -> str:
    """Where a reader's browser finds MLflow, and so the reports: Airflow's links lead there.

    machine: this machine's name, for a stack that listens on every address; only there can a reader sit elsewhere.
    """
    host = chosen.get("SPIRA_BIND", "127.0.0.1")
    if host in EVERYWHERE:
        host = chosen.get("SPIRA_HOST_NAME", machine)
    return f"http://{host}:{chosen['MLFLOW_PORT']}"


def credentials(chosen: Mapping[str, str]) -> tuple[str, str]:
    """User and password of Airflow's only user."""
    users = json.loads((Path(chosen["SPIRA_SECRETS"]) / "airflow_passwords.json").read_text())
    return "admin", str(users["admin"])


def table(services: Sequence[str], found: Mapping[str, str], chosen: Mapping[str, str]) -> list[str]:
    """A line a service: name, state, address where it is published."""
    lines = [f"{'service':<24}{'state':<24}address"]
    lines += [f"{name:<24}{found.get(name, 'waiting'):<24}{address(name, chosen)}".rstrip() for name in services]
    return lines


def _wait(stack: str, services: Sequence[str], code: Callable[[], int | None]) -> None:
    """Follow the services until all are well. code: the exit code of compose, None while it is at work."""
    since, drawn, before = time.monotonic(), 0, dict[str, str]()
    restarts: dict[str, set[str]] = {name: set() for name in services}
    while True:
        ended, found = code(), engine.states(stack)
        elapsed = time.monotonic() - since
        if sys.stdout.isatty():
            lines = [*table(services, found, _settings()), f"{elapsed:.0f} s"]
            print(f"\033[{drawn}F\033[J" * bool(drawn) + "\n".join(lines), flush=True)
            drawn = len(lines)
        else:
            for name in services:
                if (now := found.get(name, "waiting")) != before.get(name, "waiting"):
                    print(f"{elapsed:4.0f} s  {name}: {now}", flush=True)
            before = found
        well = all(found.get(name) in ("healthy", "done") for name in services)
        if ended == 0 and well:
            return
        # What is ill while compose is still at work may be what it is about to replace; and one or two restarts may be
        # those of a service that came before what it needs.
        for name in services:
            restarts[name] |= {found[name]} if found.get(name, "").startswith("restarting") else set()
        hopeless = ended == 0 and any(_ill(state) for state in found.values() if not state.startswith("restarting"))
        if ended or hopeless or max(map(len, restarts.values())) > RESTARTS or elapsed > START_SECONDS:
            raise SystemExit(_failure(stack, services, found, elapsed, bool(ended)))
        time.sleep(1)


def _ill(state: str) -> bool:
    return state.startswith(("unhealthy", "ended", "dead", "restarting"))


def _failure(
    stack: str, services: Sequence[str], found: Mapping[str, str], elapsed: float, compose_failed: bool
) -> str:
    """Which service is to blame and the end of its log; or what compose said where that is the reason."""
    said = _log().read_text(errors="replace").strip().splitlines()[-5:]
    unwell = [name for name in services if found.get(name, "waiting") not in ("healthy", "done", "waiting")]
    blamed = next((name for name in unwell if _ill(found[name])), next(iter(unwell), None))
    if blamed is None:
        return f"{stack} did not start. The end of {_log()}:\n{_indented(said)}"
    container, tail = engine.log(stack, blamed)
    return (
        f"{blamed} is {found[blamed]} after {elapsed:.0f} s. The end of its log (`docker logs {container}` has all; "
        f"`make compose-down` stops the rest):\n{_indented(tail)}"
        + (f"\ncompose gave up; the end of {_log()}:\n{_indented(said)}" if compose_failed else "")
    )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _built() -> dict[str, str]:
    """Image -> id, as `make images` left them."""
    file = ROOT / "var/images.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _ports(stack: str) -> dict[str, str]:
    """The published ports, as the environment or the defaults have them; what another one listens on is refused."""
    ours = engine.docker("ps", "--filter", f"label={engine.PROJECT}={stack}", "--format", "{{.Ports}}")
    wanted = {name: os.environ.get(name) or str((DEFAULTS | IN_CONTAINERS)[name]) for name in PORTS.values()}
    for name, port in wanted.items():
        if not port.isdigit() or not 1024 <= int(port) <= 65535:
            raise SystemExit(f"{name}={port}: not a port; choose a number from 1024 to 65535")
        if twin := next((other for other, its in wanted.items() if its == port and other != name), None):
            raise SystemExit(f"{name}={port} and {twin}={port}: give each service a port of its own")
        if f":{port}->" not in ours and not is_free(int(port)):
            raise SystemExit(f"{name}={port}: that port is in use; choose another: make compose-up {name}=...")
    return wanted


def _command() -> list[str]:
    """Compose as this machine has it, with our settings."""
    trial = engine.run("docker", "version", "-f", "{{.Server.Version}}")
    if trial.returncode:
        raise SystemExit(f"no Docker engine answers; start one, or join its socket's group\n{trial.stderr.strip()}")
    file = os.path.relpath(var() / "compose.env", ROOT)
    for words in (["docker", "compose"], ["docker-compose"]):
        if engine.run(*words, "version").returncode == 0:
            return [*words, "--env-file", file]
    raise SystemExit("neither `docker compose` nor `docker-compose` works here; install one: Compose v2, or 1.29")


def _settings() -> dict[str, str]:
    """Those of the last `up`; empty where there was none."""
    try:
        lines = (var() / "compose.env").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _environment() -> dict[str, str]:
    # What was written wins over what this shell happens to have: `down` must find what `up` started.
    return os.environ | _settings()


def _compose(command: Sequence[str], *words: str) -> str:
    done = subprocess.run([*command, *words], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join([*command, *words])} failed:\n{_indented(done.stderr.strip().splitlines()[-15:])}")
    return done.stdout


def _write(file: Path, text: str, mode: int) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(file)


def _log() -> Path:
    return var() / "log/compose.log"


if __name__ == "__main__":
    main(sys.argv[1:])
