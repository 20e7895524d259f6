"""The narrow interface against a real TorchServe. Each test uses a model name of its own on the one server."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import requests
from runs import archive_of, free_ports, packaged, wav
from servers import Running

from serve import torchserve as ts
from serve.torchserve import Server
from spira_train.outcome import Refused, TryAgain

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two packaged models: (run, version) each."""
    folder = tmp_path_factory.mktemp("two")
    return [(run, facts["version"]) for run, _, facts in (packaged(folder, seed=seed) for seed in (1, 2))]


@pytest.fixture(scope="module")
def champion(torchserve: Running, two: list[tuple[Path, str]]) -> Server:
    """A model name with the first version as its default."""
    server = replace(torchserve.server, name="champion")
    ts.register(server, archive_of(two[0][0]), two[0][1], torchserve.store)
    return server


def test_register_verify_promote_rollback(torchserve: Running, two: list[tuple[Path, str]]) -> None:
    server = replace(torchserve.server, name="life")
    (first, v1), (second, v2) = two
    assert ts.status(server) == {"default": None, "versions": {}}
    assert ts.register(server, archive_of(first), v1, torchserve.store) == "registered"
    assert ts.register(server, archive_of(first), v1, torchserve.store) == "present"
    assert ts.register(server, archive_of(second), v2, torchserve.store) == "registered"
    assert ts.status(server)["default"] == v1, "a new version takes no requests before it is promoted"
    found = ts.verify(server, v2, second / "validate" / "golden")
    assert found["recordings"] == 3
    assert found["largest_difference"] <= ts.TOLERANCE
    assert ts.promote(server, v2) is True
    assert ts.promote(server, v2) is False
    assert ts.verify(server, None, second / "validate" / "golden", expected=v2)["version"] == v2
    assert ts.rollback(server, v1) is True
    assert ts.predict(server, wav()).json()["model"]["version"] == v1
    assert ts.describe(server, v2)["model"]["version"] == v2
    assert ts.unregister(server, v2) is True
    assert ts.unregister(server, v2) is False
    assert set(ts.status(server)["versions"]) == {v1}


def test_promotion_and_rollback_lose_no_request(torchserve: Running, two: list[tuple[Path, str]]) -> None:
    server = replace(torchserve.server, name="busy")
    for run, version in two:
        ts.register(server, archive_of(run), version, torchserve.store)
    done, statuses, content = threading.Event(), [], wav(1)

    def ask() -> None:
        while not done.is_set():
            statuses.append(ts.predict(server, content).status_code)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        while len(statuses) < 100 and not any(each.done() for each in asking):
            ts.promote(server, two[1][1])
            ts.rollback(server, two[0][1])
        done.set()
        for each in asking:
            each.result()
    assert len(statuses) >= 100
    assert set(statuses) == {200}
    for version in (two[1][1], two[0][1]):
        ts.unregister(server, version)


def test_verification_fails_on_another_models_answers(champion: Server, two: list[tuple[Path, str]]) -> None:
    with pytest.raises(Refused, match="validation found"):
        ts.verify(champion, two[0][1], two[1][0] / "validate" / "golden")


def test_a_version_never_changes_its_content(
    torchserve: Running, champion: Server, two: list[tuple[Path, str]]
) -> None:
    with pytest.raises(Refused, match="is served from another archive"):
        ts.register(champion, archive_of(two[1][0]), two[0][1], torchserve.store)
    assert ts.predict(champion, wav()).status_code == 200


def test_a_broken_archive_is_removed_and_the_champion_goes_on(
    torchserve: Running, champion: Server, two: list[tuple[Path, str]], tmp_path: Path
) -> None:
    broken, version = tmp_path / "broken.mar", "2026-11-05-deadbeef"
    with ZipFile(archive_of(two[1][0])) as source, ZipFile(broken, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "model.safetensors":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if name == "MAR-INF/MANIFEST.json":
                content = content.replace(two[1][1].encode(), version.encode())
            target.writestr(name, content)
    done, statuses = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            statuses.append(ts.predict(champion, wav(1)).status_code)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        with pytest.raises(Refused, match="did not get READY and was removed"):
            ts.register(champion, broken, version, torchserve.store)
        done.set()
        asking.result()
    assert set(statuses) == {200}
    assert set(ts.status(champion)["versions"]) == {two[0][1]}


def test_bad_recordings_get_4xx_from_the_same_worker(torchserve: Running, champion: Server) -> None:
    before = torchserve.worker_pids()
    bad = [
        b"",
        b"RIFF",
        b"\0" * 5000,
        b"{",
        b"[]",
        wav(2)[:100],
        wav(0.1),
        b"ID3" + bytes(range(256)),
        wav(130, rate=8000),
    ]
    assert {ts.predict(champion, content).status_code for content in bad} <= {400, 422}
    assert ts.predict(champion, wav()).status_code == 200
    assert before <= torchserve.worker_pids()


def test_too_large_a_body_is_refused(champion: Server) -> None:
    assert ts.predict(champion, b"RIFF" + bytes(34_000_000)).status_code == 413


def test_forms_and_json_and_windows(torchserve: Running, champion: Server) -> None:
    address = f"{champion.inference}/predictions/{champion.name}"
    token = json.loads(torchserve.server.keys.read_text())["inference"]["key"]
    bearer = {"Authorization": f"Bearer {token}"}
    content = wav(6)
    as_body = ts.predict(champion, content, windows=True).json()
    form = requests.post(address, headers=bearer, files={"audio": content}, data={"windows": "true"}, timeout=30)
    assert form.status_code == 200, form.text
    as_form = form.json()
    named = {as_body.pop("request_id"), as_form.pop("request_id")}
    assert len(named) == 2
    assert None not in named
    assert as_form == as_body
    assert len(as_body["windows"]) == 3


def test_batch_mates_do_not_meet(champion: Server) -> None:
    """Eight at once, loud beside silent beside broken: the answers are those of asking one by one."""
    sounds = [wav(2 + i % 3, seed=i, level=(0.6, 0.002, 0.1)[i % 3]) for i in range(7)]
    alone = [ts.predict(champion, sound).json()["probability"] for sound in sounds]
    barrier = threading.Barrier(8)

    def ask(content: bytes) -> requests.Response:
        barrier.wait()
        return ts.predict(champion, content)

    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            *good, bad = pool.map(ask, [*sounds, b"broken"])
        assert bad.status_code == 422
        assert [answer.status_code for answer in good] == [200] * 7
        together = [answer.json()["probability"] for answer in good]
        assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= 1e-6


def test_metrics_tell_versions_apart(torchserve: Running, champion: Server, two: list[tuple[Path, str]]) -> None:
    ts.predict(champion, wav(), two[0][1])
    text = requests.get(f"http://127.0.0.1:{torchserve.ports[2]}/metrics", timeout=10).text
    lines = [line for line in text.splitlines() if line.startswith("PredictionSeconds_bucket")]
    assert any(two[0][1] in line for line in lines), text[-2000:]


@pytest.mark.parametrize("where", ["inference", "management"])
@pytest.mark.parametrize("token", [None, "wrong", "other"])
def test_without_the_right_token_nothing_is_answered(
    torchserve: Running, champion: Server, where: str, token: str | None
) -> None:
    keys = json.loads(torchserve.server.keys.read_text())
    other = keys["management" if where == "inference" else "inference"]["key"]
    headers = {} if token is None else {"Authorization": f"Bearer {other if token == 'other' else token}"}
    if where == "inference":
        answer = requests.post(f"{champion.inference}/predictions/champion", data=wav(), headers=headers, timeout=10)
    else:
        answer = requests.get(f"{champion.management}/models", headers=headers, timeout=10)
    assert answer.status_code == 400
    assert "InvalidKeyException" in answer.text


def test_a_stale_key_is_renewed(torchserve: Running, champion: Server) -> None:
    keys = json.loads(torchserve.server.keys.read_text())
    keys["management"]["key"] = keys["inference"]["key"] = "expired0"
    torchserve.server.keys.write_text(json.dumps(keys))
    assert ts.status(champion)["default"]
    assert ts.predict(champion, wav()).status_code == 200


def test_the_key_file_is_private(torchserve: Running) -> None:
    assert torchserve.server.keys.stat().st_mode & 0o777 == 0o600
    assert torchserve.home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.mar", "../x.mar", "file:///etc/passwd", "https://example.org/x.mar"]
)
def test_models_come_from_the_store_alone(champion: Server, url: str) -> None:
    answer = ts._manage(champion, "POST", "/models", params={"url": url, "model_name": "foreign"})
    assert answer.status_code in (400, 404), answer.text
    assert ts.status(replace(champion, name="foreign"))["default"] is None


def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    for call in (lambda s: ts.status(s), lambda s: ts.predict(s, b"x"), lambda s: ts.promote(s, "1")):
        with pytest.raises(TryAgain, match=f"{address} does not answer"):
            call(Server(address, address))
    with pytest.raises(TryAgain, match=r"key_file\.json: not found"):
        ts.status(Server(address, address, tmp_path / "key_file.json"))


def test_the_key_of_another_server_is_named(champion: Server, tmp_path: Path) -> None:
    keys: dict[str, Any] = {kind: {"key": "other123"} for kind in ("management", "inference", "API")}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with pytest.raises(TryAgain, match="does not take the key"):
        ts.status(replace(champion, keys=tmp_path / "keys.json"))
    with pytest.raises(TryAgain, match="asks for a token"):
        ts.status(replace(champion, keys=None))
