"""Clients, routes and settings of the gateway, without any service."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.gateway import clients, files, routes, settings, shadow
from serve.gateway.__main__ import main
from serve.gateway.settings import Mistake


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The gateway's folder, as the command line finds it."""
    monkeypatch.setenv("SPIRA_GATEWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_key_is_shown_once_and_never_kept(home, capsys):
    main(["clients", "add", "ward-7", "--rate", "5/second"])
    key = capsys.readouterr().out.strip()
    text = (home / "clients.json").read_text()
    assert len(key) >= 43
    assert key not in text
    assert stat.S_IMODE((home / "clients.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    known = files.read(home / "clients.json", clients.Clients)
    assert clients.owner(known, key) == "ward-7"
    assert known.clients["ward-7"].rate == "5/second"
    for wrong in ("", key[:-1], key + "x", known.clients["ward-7"].key, "ward-7", "ключ"):
        assert clients.owner(known, wrong) is None
    main(["clients", "list"])
    listed = capsys.readouterr().out
    assert "ward-7" in listed and "5/second" in listed
    assert known.clients["ward-7"].key not in listed
    main(["clients", "remove", "ward-7"])
    assert clients.owner(files.read(home / "clients.json", clients.Clients), key) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clients", "add", "Dr. Silva"], "'Dr. Silva': no name for a client; use up to 40 small letters"),
        (["clients", "add", "b", "--rate", "often"], "--rate 'often' is no rate; write for instance 60/minute"),
        (["clients", "add", "b", "--rate", "0/minute"], "--rate '0/minute' is no rate"),
        (["clients", "add", "a"], "a: there is such a client; remove it first"),
        (["clients", "remove", "c"], "c: no such client; there are: a"),
        (["canary", "1/../2"], "1/../2 --share 0.1: name a version, and a share above 0 and up to 1"),
        (["shadow", "v2", "--share", "1.5"], "v2 --share 1.5: name a version, and a share"),
    ],
)
def test_a_mistake_is_one_line(home, capsys, words, said):
    clients.add(home / "clients.json", "a")
    before = (home / "clients.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(said)
    assert errors.count("\n") == 1
    assert (home / "clients.json").read_bytes() == before
    assert not (home / "routes.json").exists()


def test_clients_added_at_once_are_all_there(tmp_path):
    file = tmp_path / "clients.json"
    with ThreadPoolExecutor(8) as pool:
        keys = dict(pool.map(lambda n: (f"c{n}", clients.add(file, f"c{n}")), range(24)))
    known = files.read(file, clients.Clients)
    assert {name: clients.owner(known, key) for name, key in keys.items()} == {name: name for name in keys}
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(tmp_path, caplog):
    file = tmp_path / "clients.json"
    watched = files.Watched(file, clients.Clients)
    assert watched.get().clients == {}
    key = clients.add(file, "a")
    assert clients.owner(watched.get(), key) == "a"
    file.write_text(json.dumps({"clients": {"a": {"key": "short"}}}))
    assert clients.owner(watched.get(), key) == "a", "what was good stays in force"
    assert f"{file}: clients.a.key: " in caplog.text
    with pytest.raises(Mistake, match=r"clients\.a\.key: .*; mend it, or delete it"):
        files.Watched(file, clients.Clients)
    file.unlink()
    assert watched.get().clients == {}


def test_the_first_client_is_made_once(tmp_path):
    file, secret = tmp_path / "clients.json", tmp_path / "secret"
    secret.write_text("x" * 31)
    with pytest.raises(Mistake, match="too short for the key of the client `demo`"):
        clients.first(file, secret)
    secret.write_text("x" * 43 + "\n")
    clients.first(file, secret)
    assert clients.owner(files.read(file, clients.Clients), "x" * 43) == "demo"
    clients.remove(file, "demo")
    clients.first(file, secret)
    assert files.read(file, clients.Clients).clients == {}, "whoever removed it does not want it back"


def test_the_apps_client_has_the_key_that_its_secret_holds(tmp_path):
    file, secret = tmp_path / "clients.json", tmp_path / "secret"
    other = clients.add(file, "ward-7")
    for key in ("x" * 43, "x" * 43, "y" * 43):
        secret.write_text(f"{key}\n")
        clients.keep(file, "app", secret, "600/second")
        known = files.read(file, clients.Clients)
        assert clients.owner(known, key) == "app"
        assert clients.owner(known, other) == "ward-7"
    assert clients.owner(known, "x" * 43) is None, "the old key opens nothing"
    assert known.clients["app"].rate == "600/second"
    with pytest.raises(Mistake, match=r"nowhere: cannot be read .*it holds the key of the client `app`"):
        clients.keep(file, "app", tmp_path / "nowhere", "600/second")


def test_the_canary_draws_its_share_of_clients_and_keeps_them():
    names = [f"client-{n}" for n in range(2000)]

    def drawn(version: str, share: float) -> set[str]:
        chosen = routes.Routes(canary=routes.Route(version=version, share=share))
        return {name for name in names if routes.canary(chosen, name) == version}

    tenth, third = drawn("v2", 0.1), drawn("v2", 0.3)
    assert tenth == drawn("v2", 0.1)
    assert tenth < third, "a growing canary keeps whom it has"
    assert 140 <= len(tenth) <= 260
    assert 500 <= len(third) <= 700
    assert drawn("v3", 0.1) != tenth, "not always the same clients"
    assert len(drawn("v2", 1)) == len(names)
    assert routes.canary(routes.Routes(), "client-1") is None


def test_the_shadow_is_asked_for_its_share():
    half = routes.Routes(shadow=routes.Route(version="v2", share=0.5))
    asked = sum(routes.shadow(half) == "v2" for _ in range(2000))
    assert 850 <= asked <= 1150
    assert routes.shadow(routes.Routes()) is None


def test_canary_and_shadow_from_the_command_line(home, capsys):
    main(["canary", "v2", "--share", "0.2"])
    main(["shadow", "v3", "--share", "1"])
    assert json.loads((home / "routes.json").read_text()) == {
        "canary": {"version": "v2", "share": 0.2},
        "shadow": {"version": "v3", "share": 1.0},
    }
    main(["canary", "off"])
    assert set(json.loads((home / "routes.json").read_text())) == {"shadow"}
    capsys.readouterr()
    record = {"answer": {"version": "v1"}, "shadow": {"version": "v3"}}
    for difference, agree in ((0.1, True), (-0.3, False)):
        files.append(home / "shadow.jsonl", record | {"difference": difference, "agree": agree})
    main(["shadow"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "shadow: v3, share 1"
    assert json.loads(second) == {
        "version": "v3", "answers": 2, "mean_difference": 0.2, "largest_difference": 0.3, "same_diagnosis": 0.5
    }  # fmt: skip
    assert shadow.summary(home / "shadow.jsonl", "v9") == {"version": "v9", "answers": 0}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SPIRA_GATEWAY_PORT", "http", r"SPIRA_GATEWAY_PORT=http: Input should be a valid integer"),
        ("SPIRA_GATEWAY_MAX_BYTES", "0", r"SPIRA_GATEWAY_MAX_BYTES=0: Input should be greater than or equal to 1"),
        ("SPIRA_GATEWAY_MAX_BITES", "1", r"SPIRA_GATEWAY_MAX_BITES: no such setting; there are .*MAX_BYTES"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value, said):
    with pytest.raises(Mistake, match=said):
        settings.read({name: value})
    assert settings.read({"SPIRA_GATEWAY_PORT": "9", "PATH": "/bin"}).port == 9
