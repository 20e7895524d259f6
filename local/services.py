"""What the embedded stack consists of: addresses, places, command lines, environments. Nothing is started here."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
MODEL, ORCHESTRATION = ROOT / ".venv/model/bin", ROOT / ".venv/orchestration/bin"
SERVICES = ("airflow", "mlflow", "torchserve", "gateway", "nats", "collect", "app", "worker")
SECRETS = ("gateway_demo_key", "gateway_app_key", "app_first_password", "nats_token", "pseudonym_key")


def var() -> Path:
    """The folder of all that the stack keeps: `SPIRA_VAR`, or `var/`."""
    return Path(os.environ.get("SPIRA_VAR", ROOT / "var")).absolute()


def demo_key() -> Path:
    """The file with the key of the gateway's first client, `demo`."""
    return var() / "secrets/gateway_demo_key"


def first_password() -> Path:
    """The file with the password of the app's first account, `demo`."""
    return var() / "secrets/app_first_password"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One `up` or `down` of the stack `name` at a time; raises `SystemExit` where another is at work."""
    var().mkdir(parents=True, exist_ok=True)
    with (var() / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{var()}: another `up` or `down` is at work; wait for it") from None
        yield


def describe(ports: Mapping[str, int], services: tuple[str, ...] = SERVICES) -> dict[str, Any]:
    """A stack on `ports`, as `stack.json` keeps it: which services, where they listen, where their data is."""
    url = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    folder = var()
    return {
        "services": [name for name in SERVICES if name in services],
        "ports": dict(ports),
        "airflow": url["AIRFLOW_PORT"],
        "gateway": url["GATEWAY_PORT"],
        "app": url["APP_PORT"],
        "health": {
            "airflow": url["AIRFLOW_PORT"] + "/api/v2/monitor/health",
            "mlflow": url["MLFLOW_PORT"] + "/health",
            "torchserve": url["INFERENCE_PORT"] + "/ping",
            "gateway": url["GATEWAY_PORT"] + "/healthz",
            "nats": url["NATS_HEALTH_PORT"] + "/healthz",
            "collect": url["COLLECT_PORT"] + "/healthz",
            "app": url["APP_PORT"] + "/healthz",
            "worker": url["WORKER_METRICS_PORT"] + "/metrics",
        },
        "places": {
            "SPIRA_LAKE": os.environ.get("SPIRA_LAKE", str(folder / "lake")),
            "SPIRA_RUNS": os.environ.get("SPIRA_RUNS", str(folder / "runs")),
            "SPIRA_MODELS": os.environ.get("SPIRA_MODELS", str(folder / "models")),
            "SPIRA_KEYS": str(folder / "torchserve/key_file.json"),
            "SPIRA_SIGNING_KEY": str(folder / "secrets/signing.key"),
            "SPIRA_VERIFY_KEY": str(folder / "secrets/signing.pub"),
            "SPIRA_AUDIT": str(folder / "audit"),
            "SPIRA_LIVE": str(folder / "live/live.json"),
            "MLFLOW_TRACKING_URI": url["MLFLOW_PORT"],
            "SPIRA_INFERENCE": url["INFERENCE_PORT"],
            "SPIRA_MANAGEMENT": url["MANAGEMENT_PORT"],
        },
    }


def command(name: str, stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Command line of a service and what it needs in its environment."""
    return _COMMANDS[name](stack)


def airflow_environment(stack: Mapping[str, Any]) -> dict[str, str]:
    """What Airflow's services, and its command line, need to know."""
    base, ports = stack["airflow"], stack["ports"]
    sections: dict[str, dict[str, object]] = {
        "CORE": {
            "LOAD_EXAMPLES": False,
            "DAGS_FOLDER": ROOT / "dags",
            "EXECUTION_API_SERVER_URL": f"{base}/execution/",
            "PARALLELISM": os.environ.get("SPIRA_PARALLELISM", "3"),
        },
        # Setting the port without base_url kills every task silently: tasks find the API through base_url.
        "API": {"HOST": "127.0.0.1", "PORT": ports["AIRFLOW_PORT"], "BASE_URL": base, "WORKERS": 1},
        "SCHEDULER": {"SCHEDULER_IDLE_SLEEP_TIME": 0.2},
        "DAG_PROCESSOR": {"REFRESH_INTERVAL": 20, "PARSING_PROCESSES": 1, "MIN_FILE_PROCESS_INTERVAL": 60},
        # Whoever watches a task may notice its end only with the next heartbeat.
        "WORKERS": {"MIN_HEARTBEAT_INTERVAL": 1},
        "LOGGING": {
            "WORKER_LOG_SERVER_PORT": ports["AIRFLOW_LOG_PORT"],
            "TRIGGER_LOG_SERVER_PORT": ports["AIRFLOW_TRIGGER_LOG_PORT"],
            "COLORED_CONSOLE_LOG": False,
        },
        "USAGE_DATA_COLLECTION": {"ENABLED": False},
    }
    return {
        "AIRFLOW_HOME": str(var() / "airflow"),
        "PATH": f"{ORCHESTRATION}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "NO_COLOR": "1",
        "SPT_NOENV": "1",  # else Airflow's process titles overwrite the mark by which `down` finds its processes
        "SPIRA_RUNTIME": os.environ.get("SPIRA_RUNTIME", "process"),
        "SPIRA_TRAIN": os.environ.get("SPIRA_TRAIN", str(MODEL / "spira-train")),
        **{
            name: os.environ[name]
            for name in (
                "SPIRA_PRESET",
                "SPIRA_GPUS",
                "SPIRA_KEEP",
                "SPIRA_RETRAIN",
                "SPIRA_TRAIN_ON_CLOSE",
                "SPIRA_APPROVAL_HOURS",
            )
            if name in os.environ
        },
        **stack["places"],
        **{f"AIRFLOW__{s}__{name}": str(value) for s, options in sections.items() for name, value in options.items()},
    }


def _airflow(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    return [str(ORCHESTRATION / "airflow"), "standalone"], airflow_environment(stack)


def _mlflow(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    folder = var() / "mlflow"
    flags = {
        "backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "artifacts-destination": folder / "artifacts",
        "host": "127.0.0.1",
        "port": stack["ports"]["MLFLOW_PORT"],
        "workers": 1,
    }
    env = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes for jobs that nobody has
    }
    if page := os.environ.get("SPIRA_MLFLOW_UI"):  # by a tunnel or a proxy: MLflow refuses names that it is not told
        seen = urlsplit(page)
        env["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"localhost:*,127.0.0.1:*,{seen.netloc}"
        env["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = f"{seen.scheme}://{seen.netloc}"
    return [str(MODEL / "python"), "-m", "mlflow", "server", *_words(flags)], env


def _torchserve(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    ports = stack["ports"]
    flags = {
        "store": stack["places"]["SPIRA_MODELS"],
        "home": var() / "torchserve",
        "inference": ports["INFERENCE_PORT"],
        "management": ports["MANAGEMENT_PORT"],
        "metrics": ports["METRICS_PORT"],
        "grpc-inference": ports["GRPC_INFERENCE_PORT"],
        "grpc-management": ports["GRPC_MANAGEMENT_PORT"],
    }
    return [str(MODEL / "python"), "-m", "serve.launch", *_words(flags)], {}


def _gateway(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    names = ("SPIRA_INFERENCE", "SPIRA_MANAGEMENT", "SPIRA_KEYS")
    return [str(MODEL / "python"), "-m", "serve.gateway", "serve"], {
        **{name: stack["places"][name] for name in names},
        "SPIRA_GATEWAY_HOME": str(var() / "gateway"),
        "SPIRA_GATEWAY_PORT": str(stack["ports"]["GATEWAY_PORT"]),
        "SPIRA_GATEWAY_METRICS_PORT": str(stack["ports"]["GATEWAY_METRICS_PORT"]),
        "SPIRA_GATEWAY_FIRST_KEY": str(demo_key()),
        "SPIRA_GATEWAY_APP_KEY": str(var() / "secrets/gateway_app_key"),
        "SPIRA_GATEWAY_AUDIT": stack["places"]["SPIRA_AUDIT"],
    }


def _nats(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    ports = stack["ports"]
    flags = {"c": ROOT / "images/nats/nats.conf", "a": "127.0.0.1", "p": ports["NATS_PORT"]}
    flags |= {"m": ports["NATS_HEALTH_PORT"], "sd": var() / "nats"}
    words = [word for name, value in flags.items() for word in (f"-{name}", str(value))]
    token = (var() / "secrets/nats_token").read_text().strip()
    return [str(MODEL / "nats-server"), *words], {"NATS_TOKEN": f'"{token}"'}


def _end(stack: Mapping[str, Any]) -> dict[str, str]:
    """What app, worker and collection are told alike."""
    secrets = var() / "secrets"
    return {
        "SPIRA_LAKE": stack["places"]["SPIRA_LAKE"],
        "SPIRA_DATABASE": f"sqlite:///{var() / 'app/app.db'}",
        "SPIRA_FIRST_PASSWORD": str(first_password()),
        "SPIRA_PSEUDONYM_KEY": str(secrets / "pseudonym_key"),
        "SPIRA_TRAIL": str(var() / "trail"),
        "SPIRA_NATS": f"nats://127.0.0.1:{stack['ports']['NATS_PORT']}",
        "SPIRA_NATS_TOKEN_FILE": str(secrets / "nats_token"),
        "SPIRA_APP_AUDIO": str(var() / "inferences"),
    }


def _collect(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    return [str(MODEL / "python"), "-m", "collect", "serve"], {
        **_end(stack),
        "SPIRA_COLLECT_PORT": str(stack["ports"]["COLLECT_PORT"]),
    }


def _app(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    ports = stack["ports"]
    return [str(MODEL / "python"), "-m", "serve.app", "serve"], {
        **_end(stack),
        "SPIRA_APP_HOME": str(var() / "app"),
        "SPIRA_APP_LIVE": stack["places"]["SPIRA_LIVE"],
        "SPIRA_APP_PORT": str(ports["APP_PORT"]),
        "SPIRA_APP_METRICS_PORT": str(ports["APP_METRICS_PORT"]),
        "SPIRA_COLLECT": f"http://127.0.0.1:{ports['COLLECT_PORT']}",
    }


def _worker(stack: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    return [str(MODEL / "python"), "-m", "serve.app", "worker"], {
        **_end(stack),
        "SPIRA_APP_METRICS_PORT": str(stack["ports"]["WORKER_METRICS_PORT"]),
        "SPIRA_GATEWAY": stack["gateway"],
        "SPIRA_GATEWAY_KEY": str(var() / "secrets/gateway_app_key"),
    }


_COMMANDS = {
    "airflow": _airflow,
    "mlflow": _mlflow,
    "torchserve": _torchserve,
    "gateway": _gateway,
    "nats": _nats,
    "collect": _collect,
    "app": _app,
    "worker": _worker,
}


def _words(flags: Mapping[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]
