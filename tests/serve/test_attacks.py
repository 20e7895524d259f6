"""The attacks of `bench.attack`, in a small form; docs/security.md has the table of the large one."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import gateways
import pytest
from runs import archive_of, packaged, wav
from servers import Running

from bench import attack
from bench.attack import Target
from serve import torchserve as ts
from serve.gateway import clients
from serve.torchserve import Server

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
SOUND = wav(2.0, seed=4)


@pytest.fixture(scope="module")
def served(torchserve: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run, _, facts = packaged(tmp_path_factory.mktemp("attacked"), seed=5)
    server = replace(torchserve.server, name="attacked")
    ts.register(server, archive_of(run), facts["version"], torchserve.store)
    yield server
    ts.unregister(server, facts["version"])


@pytest.fixture(scope="module")
def gateway(served: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateways.Gateway]:
    home, keys = tmp_path_factory.mktemp("gateway"), served.keys
    it = gateways.start(
        home, inference=served.inference, management=served.management, keys=keys, model=served.name, body_seconds=2
    )
    yield it
    assert it.stop() == 0
    assert "Traceback" not in (home / "log").read_text()


def ways(gateway: gateways.Gateway, served: Server) -> dict[str, Target]:
    token = json.loads(served.keys.read_text())["inference"]["key"]
    direct = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    through = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "audio/wav"}
    address = f"{served.inference}/predictions/{served.name}"
    return {"gateway": Target("gateway", gateway.predict, through), "TorchServe": Target("TorchServe", address, direct)}


@pytest.mark.parametrize("way", ["gateway", "TorchServe"])
def test_malformed_bodies_and_headers(gateway, served, way: str) -> None:
    target = ways(gateway, served)[way]
    for row in (attack.fuzz(target, SOUND, 140), attack.headers(target, SOUND)):
        assert row.held, row


def test_slow_clients_keep_nobody_else_out(gateway, served) -> None:
    target = ways(gateway, served)["gateway"]
    key = clients.add(gateway.home / "clients.json", "honest", "1000/minute")
    honest = replace(target, headers=target.headers | {"Authorization": f"Bearer {key}"})
    row = attack.slow(target, honest, SOUND, 40, 2)
    assert row.held, row


def test_an_overload_is_shed(gateway, served) -> None:
    row = attack.overload(ways(gateway, served)["gateway"], SOUND, 64, 2)
    assert row.held, row
    assert set(row.came) == {"200", "503"}


def test_killed_workers_come_back(gateway, served, torchserve: Running) -> None:
    row = attack.killed(ways(gateway, served)["gateway"], SOUND, torchserve.worker_pids, 1)
    assert row.held, row


def test_tokens_and_archives_from_elsewhere(gateway, served, torchserve: Running) -> None:
    for row in (attack.tokens(served, SOUND), attack.registration(served, torchserve.store, SOUND)):
        assert row.held, row
        assert "200" not in row.came
    assert "stolen" not in json.dumps(ts.status(replace(served, name="stolen")))


def test_a_server_that_breaks_did_not_hold() -> None:
    away = Target("nobody", "http://127.0.0.1:9/", {})
    assert not attack.judge("x", away, Counter({200: 3}), {200}, SOUND, patience=0).held
    assert attack.fuzz(replace(away, url="http://127.0.0.1:9/"), SOUND, 3).came == {"ConnectionError": 3}
