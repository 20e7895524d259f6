"""`python -m serve.gateway`: run the gateway, and manage its clients, its canary and its shadow.

Settings come from the environment (serve/gateway/settings.py). A running gateway takes changes up by itself.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from types import FrameType

import uvicorn

from serve.gateway import clients, files, routes, shadow
from serve.gateway.app import Gateway, create
from serve.gateway.settings import Mistake, Settings, read

APP_RATE = "600/second"  # whoever waits stands in line at the app; the gateway's places in flight are its limit


def main(arguments: list[str] | None = None) -> None:
    """Parse and do; a mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run until SIGTERM, then end in order")
    client = commands.add_parser("clients", help="who may ask").add_subparsers(dest="action", required=True)
    client.add_parser("list", help="names, rates, since when")
    added = client.add_parser("add", help="print a new client's key, once")
    added.add_argument("name", help="small letters, digits, hyphens; name a system, not a person")
    added.add_argument("--rate", default=clients.RATE, help=f"default: {clients.RATE}")
    client.add_parser("remove", help="its key opens nothing any more").add_argument("name")
    for name, what in (("canary", "answers a share of the clients"), ("shadow", "is asked as well, never answers")):
        route = commands.add_parser(name, help=f"a version that {what}")
        route.add_argument("version", nargs="?", help="a version that TorchServe has loaded, or `off`; none: show")
        route.add_argument("--share", type=float, default=0.1, help="above 0, up to 1 (default: 0.1)")
    options = parser.parse_args(arguments)
    try:
        settings = read(os.environ)
        match options.command:
            case "serve":
                serve(settings)
            case "clients":
                _clients(settings, options)
            case name:
                _route(settings, name, options.version, options.share)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        raise SystemExit(2) from None


class Server(uvicorn.Server):
    """Uvicorn that is "not ready" for a while before it takes no more connections, and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway, self.leave = gateway, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the end; a second one hurries it."""
        if self.gateway.draining:
            self.should_exit, self.force_exit = True, self.should_exit and sig == signal.SIGINT
        self.gateway.draining = True
        self.leave = min(self.leave, time.monotonic() + self.gateway.settings.drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        return await super().on_tick(counter) or time.monotonic() >= self.leave


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT; then: not ready, no new connections, answers in flight, shadow, end."""
    from prometheus_client import disable_created_metrics, start_http_server

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    disable_created_metrics()
    # httpcore looks for it several times a request, in every folder of the path; with this, once and for all.
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]
    if settings.first_key:
        clients.first(settings.home / "clients.json", settings.first_key)
    if settings.app_key:
        clients.keep(settings.home / "clients.json", "app", settings.app_key, APP_RATE)
    try:
        for folder in (settings.home, settings.audit_file.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        start_http_server(settings.metrics_port, settings.host)
    except OSError as error:
        place = error.filename or f"SPIRA_GATEWAY_METRICS_PORT={settings.metrics_port}"
        raise Mistake(f"{place}: {error.strerror}") from None
    app = create(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=int(settings.body_seconds + settings.answer_seconds) + 1,
    )
    Server(config, app.state.gateway).run()


def _clients(settings: Settings, options: argparse.Namespace) -> None:
    file = settings.home / "clients.json"
    match options.action:
        case "add":
            key = clients.add(file, options.name, options.rate)
            print(f"{options.name} may ask {options.rate}. Its key, which is shown this once:", file=sys.stderr)
            print(key)
        case "remove":
            clients.remove(file, options.name)
        case _:
            for name, client in files.read(file, clients.Clients).clients.items():
                print(f"{name:<40} {client.rate:<16} since {client.added}")


def _route(settings: Settings, name: str, version: str | None, share: float) -> None:
    file = settings.home / "routes.json"
    if version == "off":
        routes.change(file, name, None)
    elif version:
        try:
            routes.change(file, name, routes.Route(version=version, share=share))
        except ValueError:
            raise Mistake(f"{version} --share {share:g}: name a version, and a share above 0 and up to 1") from None
    route = getattr(files.read(file, routes.Routes), name)
    print(f"{name}: {f'{route.version}, share {route.share:g}' if route else 'off'}")
    if name == "shadow" and route:
        print(json.dumps(shadow.summary(settings.home / "shadow.jsonl", route.version)))


if __name__ == "__main__":
    main()
