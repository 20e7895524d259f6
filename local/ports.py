"""Ports of the embedded stack: the defaults, the user's own, or free ones."""

import socket
from collections.abc import Mapping

DEFAULTS = {
    "AIRFLOW_PORT": 8080,
    "AIRFLOW_LOG_PORT": 8793,
    "AIRFLOW_TRIGGER_LOG_PORT": 8794,
    "MLFLOW_PORT": 5000,
    "INFERENCE_PORT": 8085,
    "MANAGEMENT_PORT": 8086,
    "METRICS_PORT": 8087,
    "GATEWAY_PORT": 8090,
    "GATEWAY_METRICS_PORT": 8091,
    "COLLECT_PORT": 8092,
    "APP_PORT": 8093,
    "APP_METRICS_PORT": 8094,
    "WORKER_METRICS_PORT": 8095,
    "NATS_PORT": 4222,
    "NATS_HEALTH_PORT": 8222,
    "GRPC_INFERENCE_PORT": 7070,
    "GRPC_MANAGEMENT_PORT": 7071,
}
IN_CONTAINERS = {"PROMETHEUS_PORT": 9090, "APP_PORT": 8443}  # the stack in containers has these, or has them elsewhere


class PortTaken(Exception):
    """A port that the user asked for cannot be had."""


def choose_ports(env: Mapping[str, str], defaults: Mapping[str, int] = DEFAULTS) -> dict[str, int]:
    """A port for each name of `defaults`: the one in `env`, else the default, else any free one; all different.

    Raises `PortTaken` where the one in `env` is no port, is in use, or is asked for twice.
    """
    asked = {name: _asked(name, env[name]) for name in defaults if env.get(name)}
    for name, port in asked.items():
        twins = [other for other, its in asked.items() if its == port and other != name]
        if twins:
            raise PortTaken(f"{name}={port} and {twins[0]}={port}: give each service a port of its own")
        if not is_free(port):
            raise PortTaken(f"{name}={port}: that port is in use; choose another, or unset {name} to have one found")
    chosen = dict(asked)
    for name, default in defaults.items():
        if name not in chosen:
            chosen[name] = default if default not in chosen.values() and is_free(default) else any_free(chosen)
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _asked(name: str, text: str) -> int:
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise PortTaken(f"{name}={text}: not a port; choose a number from 1024 to 65535")
    return int(text)


def any_free(chosen: Mapping[str, int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in {*chosen.values(), *DEFAULTS.values()}:
            return port
