"""`python -m serve.app serve | worker`: the app for people, and the worker that asks the model.

Settings come from the environment (serve/app/settings.py, access/settings.py).
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from types import FrameType

import uvicorn

from access import settings as access_settings
from serve.app import settings as app_settings
from serve.app.settings import Settings
from serve.gateway.settings import Mistake

GRACE = 5  # seconds for answers in flight at the end; who waits for events asks again


def main(arguments: list[str] | None = None) -> None:
    """Parse and do; a mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m serve.app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="page and API; the one that writes the database")
    commands.add_parser("worker", help="takes requests from NATS and asks the gateway; as many as are needed")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        settings = app_settings.read(os.environ)
        _metrics(settings)
        if options.command == "serve":
            serve(settings)
        else:
            asyncio.run(work(settings))
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        raise SystemExit(2) from None


class Server(uvicorn.Server):
    """Uvicorn that ends with exit code 0 when it was asked to end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the end; a second one hurries it."""
        self.force_exit, self.should_exit = self.should_exit and sig == signal.SIGINT, True


def serve(settings: Settings) -> None:
    """Run the app until SIGTERM or SIGINT."""
    from serve.app.service import create

    api = create(settings, access_settings.read(os.environ))
    config = uvicorn.Config(
        api,
        host=settings.host,
        port=settings.port,
        access_log=False,  # it would hold addresses
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE,
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
    )
    Server(config).run()


async def work(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    from serve.app import worker

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    await worker.run(settings, stop)


def _metrics(settings: Settings) -> None:
    from prometheus_client import disable_created_metrics, start_http_server

    disable_created_metrics()
    try:
        start_http_server(settings.metrics_port, settings.host)
    except OSError as error:
        raise Mistake(f"SPIRA_APP_METRICS_PORT={settings.metrics_port}: {error.strerror}") from None


if __name__ == "__main__":
    main()
