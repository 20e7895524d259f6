"""The app before a real gateway and a real TorchServe, which is killed while requests wait."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gateways
import pytest
from inference_parts import Parts, ended, new_id, parts, running
from runs import archive_of, packaged, wav
from servers import Running
from servers import running as torchserve_of

from serve import torchserve as ts

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
# As long as TorchServe may take to come back on a slow machine; the real pauses add up to as much.
PAUSES = ",".join(["1"] * 60)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[Parts, Running, str]]:
    """(the parts before a real model, its TorchServe, the version)."""
    folder = tmp_path_factory.mktemp("real")
    torchserve = torchserve_of(folder / "ts")
    torchserve.home.parent.mkdir()
    torchserve.start()
    server = replace(torchserve.server, name="spira")
    run, _, facts = packaged(folder)
    ts.register(server, archive_of(run), facts["version"], torchserve.store)
    (folder / "gateway").mkdir()
    gateway = gateways.start(
        folder / "gateway", inference=server.inference, management=server.management, keys=server.keys, model="spira"
    )
    it = parts(folder, gateway=gateway.url, gateway_key=gateway.key, pauses=PAUSES, answer_seconds=40, ack_seconds=60)
    try:
        with running(it, without=("gateway",)):
            yield it, torchserve, facts["version"]
    finally:
        gateway.stop()
        torchserve.stop()


def test_the_answer_is_the_models_own(served):
    it, torchserve, version = served
    content, id = wav(5.0, seed=3), new_id()
    theirs = ts.predict(replace(torchserve.server, name="spira"), content, windows=True).json()
    with it.client() as nurse:
        nurse.put(f"/v1/inferences/{id}", content=content)
        answer = ended(nurse, id, 60)["answer"]
        assert answer["request_id"] == id
        assert answer["model"]["version"] == version
        for name in ("probability", "calibrated", "diagnosis", "warnings", "windows"):
            assert answer[name] == theirs[name]
        short = new_id()
        nurse.put(f"/v1/inferences/{short}", content=wav(0.1))
        assert ended(nurse, short, 60)["error"] == "too_short"


def test_requests_wait_for_a_torchserve_that_was_killed(served):
    it, torchserve, version = served
    contents = {new_id(): wav(4.0, seed=number) for number in range(24)}
    with it.client() as nurse:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: nurse.put(f"/v1/inferences/{one[0]}", content=one[1]), contents.items()))
            torchserve.stop(signal.SIGKILL)
            late = {new_id(): wav(4.0, seed=number + 100) for number in range(8)}
            list(pool.map(lambda one: nurse.put(f"/v1/inferences/{one[0]}", content=one[1]), late.items()))
        waiting = [one for one in nurse.get("/v1/inferences?limit=100").json() if one["state"] == "processing"]
        assert {one["id"] for one in waiting} >= set(late)
        torchserve.start()
        for id in contents | late:
            done = ended(nurse, id, 120)
            assert (done["state"], done["answer"]["model"]["version"]) == ("completed", version)
    with it.client("operator") as operator:
        assert operator.get("/v1/dead").json() == []
