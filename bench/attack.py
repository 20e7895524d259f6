"""Attack the model server and its gateway, and say what came back: `python -m bench.attack [--small]`.

Each attack is a function that gives one row. It held where nothing came back but what is allowed, and a good recording
is answered right after it. The table of `docs/security.md` is made by this; the tests run the same in a small form.
"""

import argparse
import base64
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import requests

from bench import machine
from bench.serve.model import recording, serving
from bench.workers import workers
from serve.gateway import clients
from serve.torchserve import Server
from spira_train.store import write_atomic

REFUSED = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 431, 501}
SHED = {429, 503}
Answer = int | str  # a status, or how the connection ended


@dataclass(frozen=True)
class Target:
    """A way in: `ask` sends one recording's bytes and gives the status; `url` is where it goes."""

    name: str
    url: str
    headers: dict[str, str]

    def ask(self, content: bytes, **more: str) -> Answer:
        """The status, or the kind of error where there was none."""
        try:
            return requests.post(self.url, content, headers=self.headers | more, timeout=60).status_code
        except requests.RequestException as error:
            return type(error).__name__


@dataclass(frozen=True)
class Row:
    """One attack: how often, what came back, whether that is allowed and a good recording was answered after it."""

    attack: str
    target: str
    tries: int
    came: dict[str, int]
    held: bool


def fuzz(target: Target, sound: bytes, tries: int, seed: int = 0) -> Row:
    """Bodies that are no recording, or nearly one."""
    with ThreadPoolExecutor(8) as pool:
        came = Counter(pool.map(target.ask, bodies(sound, tries, Random(seed))))  # noqa: S311 - no secret
    return judge("malformed bodies", target, came, {200, *REFUSED}, sound)


def bodies(sound: bytes, tries: int, random: Random) -> Iterator[bytes]:
    """Truncated, flipped, spliced, random, nested, empty and lying bodies, `tries` in all."""
    kinds: Sequence[Callable[[], bytes]] = (
        lambda: sound[: random.randrange(len(sound))],
        lambda: flipped(sound, random, 1),
        lambda: flipped(sound, random, 200),
        lambda: flipped(sound[:64], random, 4) + sound[64:],  # the header alone
        lambda: random.randbytes(random.randrange(4096)),
        lambda: random.choice((b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb")) + random.randbytes(2048),
        lambda: b"RIFF" + (2**32 - 1).to_bytes(4, "little") + sound[8:],
        lambda: sound[:40] + random.randbytes(4) + sound[44:],  # a data chunk of another length
        lambda: sound[:12] + sound,  # one container in another
        lambda: json.dumps({"audio": base64.b64encode(sound[: random.randrange(999)]).decode()}).encode(),
        lambda: b'{"audio":' * random.randrange(1, 2000),
        lambda: b"[" * random.randrange(1, 20000),
        lambda: b"",
        lambda: bytes(random.randrange(65536)),
    )
    for number in range(tries):
        yield kinds[number % len(kinds)]()


def flipped(content: bytes, random: Random, bits: int) -> bytes:
    """`content` with some of its bits turned over."""
    changed = bytearray(content)
    for _ in range(bits):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def headers(target: Target, sound: bytes) -> Row:
    """Headers of 64 KB, control characters, two lengths, a length that lies, an endless first line."""
    where = urlsplit(target.url)
    head = f"POST {where.path} HTTP/1.1\r\nHost: x\r\n"
    own = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    length = f"Content-Length: {len(sound)}\r\n"
    texts = [
        f"{head}{own}X-Long: {'a' * 65536}\r\n{length}\r\n",
        f"{head}{own}{''.join(f'X-{n}: b{chr(13)}{chr(10)}' for n in range(5000))}{length}\r\n",
        f"{head}{own}X-Bad: \x00\x01\r\n{length}\r\n",
        f"{head}{own}{length}Content-Length: 5\r\n\r\n",
        f"{head}{own}Content-Length: -1\r\n\r\n",
        f"{head}{own}Content-Length: 99999999999\r\n\r\n",
        f"{head}{own}Transfer-Encoding: chunked\r\n\r\nzzzz\r\n",
        f"POST /{'a' * 70000} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GARBAGE\r\n\r\n",
    ]
    came = Counter(raw(target, text.encode("latin-1"), sound) for text in texts)
    return judge("headers", target, came, {*REFUSED, 200, "closed"}, sound)


def raw(target: Target, head: bytes, body: bytes, wait: float = 10.0) -> Answer:
    """Send bytes as they are; the status of the answer, or that the connection was closed without one."""
    where = urlsplit(target.url)
    with closing(socket.create_connection((where.hostname, where.port), 5)) as it:
        it.settimeout(wait)
        with suppress(OSError):  # the answer may be there all the same
            it.sendall(head + body)
        try:
            line = it.recv(4096).split(b"\r\n")[0].split()
        except OSError:
            return "closed"
        return int(line[1]) if len(line) > 1 and line[1].isdigit() else "closed"


def slow(target: Target, honest: Target, sound: bytes, connections: int, seconds: float) -> Row:
    """Connections that send a byte now and then; counted are the answers of somebody else, who asks in earnest."""
    where, held = urlsplit(target.url), []
    own = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    for _ in range(connections):
        it = socket.create_connection((where.hostname, where.port), 5)
        it.sendall(f"POST {where.path} HTTP/1.1\r\nHost: x\r\n{own}Content-Length: {len(sound)}\r\n\r\n".encode())
        held.append(it)
    came: Counter[Answer] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for it in held:
            with suppress(OSError):  # given up on, as it should be
                it.send(b"R")
        came[honest.ask(sound)] += 1
        time.sleep(0.2)
    for it in held:
        it.close()
    return judge(f"{connections} slow clients", target, came, {200}, sound, patience=30)


def overload(target: Target, sound: bytes, clients: int, seconds: float) -> Row:
    """Far more clients than it can answer: it sheds them, and recovers by itself."""
    came: Counter[Answer] = Counter()
    until = time.monotonic() + seconds

    def hammer(_: int) -> list[Answer]:
        found = []
        while time.monotonic() < until:
            found.append(target.ask(sound))
        return found

    with ThreadPoolExecutor(clients) as pool:
        for found in pool.map(hammer, range(clients)):
            came.update(found)
    return judge(f"overload, {clients} clients", target, came, {200, *SHED}, sound, patience=10)


def killed(target: Target, sound: bytes, pids: Callable[[], Iterable[int]], kills: int) -> Row:
    """A worker is killed every second: what is asked meanwhile is answered, or told to come again."""
    came: Counter[Answer] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            came[target.ask(sound)] += 1

    caller = threading.Thread(target=ask)
    caller.start()
    for _ in range(kills):
        for pid in pids():
            os.kill(pid, signal.SIGKILL)
        time.sleep(1)
    stop.set()
    caller.join()
    return judge(f"{kills} kills of the worker", target, came, {200, 503}, sound, patience=60)


def tokens(server: Server, sound: bytes) -> Row:
    """No token, a wrong one, the one for management, an old one, on the model server's two ports."""
    assert server.keys is not None  # noqa: S101 - for the type checker
    keys = json.loads(server.keys.read_text())
    inference, management = keys["inference"]["key"], keys["management"]["key"]
    predict, models = f"{server.inference}/predictions/{server.name}", f"{server.management}/models"
    came: Counter[Answer] = Counter()
    for url, wrong in ((predict, management), (models, inference)):
        for token in (None, "", "x", "x" * 5000, wrong):
            bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
            verb = "POST" if url == predict else "GET"
            came[requests.request(verb, url, headers=bearer, data=sound, timeout=30).status_code] += 1
    renewal = {"Authorization": f"Bearer {keys['API']['key']}"}
    requests.get(f"{server.management}/token", params={"type": "inference"}, headers=renewal, timeout=30)
    old = {"Authorization": f"Bearer {inference}"}
    came[requests.post(predict, sound, headers=old, timeout=30).status_code] += 1
    new = json.loads(server.keys.read_text())["inference"]["key"]
    good = Target("TorchServe", predict, {"Authorization": f"Bearer {new}", "Content-Type": "application/octet-stream"})
    return judge("tokens", good, came, {400, 401, 403}, sound)


TRICKS = (
    "../x.mar", "..%2fx.mar", "/etc/passwd", "file:///etc/passwd", "file:///tmp/x.mar", "http://127.0.0.1:9/x.mar",
    "https://example.org/x.mar", "ftp://example.org/x.mar", "s3://bucket/x.mar", "spira\x00.mar", "x.mar?y",
    "a/../../x.mar", "file://localhost/etc/x.mar", "", ".", "x.war",
)  # fmt: skip


def registration(server: Server, store: Path, sound: bytes) -> Row:
    """Archives from anywhere but the model store, named in every way that path checks have been fooled with."""
    assert server.keys is not None  # noqa: S101
    keys = json.loads(server.keys.read_text())
    bearer = {"Authorization": f"Bearer {keys['management']['key']}"}
    with tempfile.TemporaryDirectory() as outside:
        archive = Path(outside) / "x.mar"
        shutil.copyfile(next(store.glob(f"{server.name}-*.mar")), archive)
        urls = [*TRICKS, f"file://{archive}", f"file://{store}/../{archive.name}", os.path.relpath(archive, store)]
        came: Counter[Answer] = Counter()
        for url in urls:
            params = {"url": url, "model_name": "stolen", "initial_workers": "1", "synchronous": "true"}
            answer = requests.post(f"{server.management}/models", params=params, headers=bearer, timeout=60)
            came[answer.status_code] += 1
    url = f"{server.inference}/predictions/{server.name}"
    mine = {"Authorization": f"Bearer {keys['inference']['key']}", "Content-Type": "application/octet-stream"}
    # TorchServe says 500 where it cannot make sense of a URL; what counts is that nothing was loaded
    return judge("registration from elsewhere", Target("TorchServe", url, mine), came, {*REFUSED, 409, 500}, sound)


def judge(
    attack: str, target: Target, came: Counter[Answer], allowed: set[Any], sound: bytes, patience: float = 5
) -> Row:
    """The row of an attack; a good recording has to be answered within `patience` seconds after it."""
    deadline = time.monotonic() + patience
    while not (well := target.ask(sound) == 200) and time.monotonic() < deadline:
        time.sleep(0.5)
    shown = {str(answer): count for answer, count in sorted(came.items(), key=lambda pair: str(pair[0]))}
    return Row(attack, target.name, sum(came.values()), shown, well and set(came) <= allowed)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true", help="a hundredth of it")
    options.add_argument("--json", type=Path, help="keep the rows there")
    chosen = options.parse_args()
    folder, share = Path(tempfile.mkdtemp(prefix="spira-bench-")), 100 if chosen.small else 1
    rows = []
    try:
        with serving(folder, "fast") as it:
            sound, keys = recording(it.run, 4), it.server.keys
            assert keys is not None  # noqa: S101
            gateway = Target("gateway", f"{it.gateway}/v1/predict", _bearer(it.key, "audio/wav"))
            another = clients.add(folder / "var/gateway/clients.json", "honest", "100000/minute")
            honest = Target("gateway", gateway.url, _bearer(another, "audio/wav"))

            def direct() -> Target:
                token = json.loads(keys.read_text())["inference"]["key"]
                return Target("TorchServe", f"{it.server.inference}/predictions/spira", _bearer(token))

            def pids() -> set[int]:
                return workers(keys.parent)

            for attack in (
                lambda: fuzz(gateway, sound, 10_000 // share),
                lambda: fuzz(direct(), sound, 10_000 // share, seed=1),
                lambda: headers(gateway, sound),
                lambda: headers(direct(), sound),
                lambda: slow(gateway, honest, sound, 100, 30 / share),
                lambda: slow(direct(), direct(), sound, 100, 30 / share),
                lambda: overload(gateway, sound, 160, 30 / share),
                lambda: overload(direct(), sound, 160, 30 / share),
                lambda: killed(gateway, sound, pids, 60 // share + 1),
                lambda: tokens(it.server, sound),
                lambda: registration(it.server, it.models, sound),
            ):
                rows.append(attack())
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    if chosen.json:
        write_atomic(chosen.json, json.dumps([row.__dict__ for row in rows], indent=1).encode())
    shown = [
        (r.attack, r.target, r.tries, ", ".join(f"{n}: {c}" for n, c in r.came.items()), "held" if r.held else "BROKE")
        for r in rows
    ]
    machine.show("Attacks on serving", ("attack", "on", "tries", "what came back", ""), shown)
    if not all(row.held for row in rows):
        raise SystemExit(1)


def _bearer(token: str, kind: str = "application/octet-stream") -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": kind}


if __name__ == "__main__":
    main()
