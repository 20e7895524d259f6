"""The stack in containers, as the compose file describes it and `local.compose` prepares it; no engine is needed."""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from local import compose, engine

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("docker-compose.yaml", "docker-compose.gpu.yaml")
ONCE = {"places", "airflow-init"}
PORTS = {"airflow-apiserver": "8080", "mlflow": "5000", "torchserve": "8085", "gateway": "8090"}
PORTS |= {"prometheus": "9090", "proxy": "8443"}
PORT_NAMES = ("AIRFLOW_PORT", "MLFLOW_PORT", "INFERENCE_PORT", "GATEWAY_PORT", "PROMETHEUS_PORT", "APP_PORT")
SERVICES = set(PORTS) | ONCE | {"postgres", "engine-proxy", "nats", "app", "app-worker", "collect"}
SERVICES |= {f"airflow-{name}" for name in ("scheduler", "dag-processor", "triggerer")}
IMAGE = "sha256:" + "0" * 64


def resolved(*files: str, **variables: str) -> dict:
    """What docker-compose makes of the files."""
    words = next((w for w in (["docker-compose"], ["docker", "compose"]) if shutil.which(w[0])), None)
    if words is None:
        pytest.skip("no docker-compose on this machine")
    words = [*words, *(word for file in files for word in ("-f", file)), "config"]
    # the engine's address leads nowhere: none may be needed
    env = {"PATH": os.environ["PATH"], "DOCKER_HOST": "tcp://127.0.0.1:9"} | variables
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not set" not in done.stderr, "every variable has a default"
    return yaml.safe_load(done.stdout)


@pytest.fixture(scope="module")
def stack() -> dict:
    """docker-compose.yaml as compose understands it."""
    return resolved(FILES[0])


@pytest.fixture(scope="module")
def services(stack) -> dict:
    return stack["services"]


def networks(service: dict) -> set[str]:
    return set(service.get("networks") or ())


def published(services: dict) -> dict[str, list[str]]:
    """Service -> host:port:container of what it publishes, in the short form of 1.29 or the long one of v2."""
    found = {}
    for name, service in services.items():
        for port in service.get("ports", ()):
            long = isinstance(port, dict)
            short = f"{port.get('host_ip')}:{port['published']}:{port['target']}" if long else port.split("/")[0]
            found.setdefault(name, []).append(short)
    return found


def mounts(service: dict) -> dict[str, str]:
    """Target -> source."""
    pairs = [
        (m["target"], m["source"]) if isinstance(m, dict) else tuple(reversed(m.split(":")[:2]))
        for m in service.get("volumes", ())
    ]
    return dict(pairs)


def test_services(services):
    assert set(services) == SERVICES


def test_six_ports_on_loopback(services):
    assert published(services) == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PORTS.items()}


def test_ports_and_address_can_be_chosen():
    chosen = resolved(FILES[0], SPIRA_BIND="10.0.0.1", AIRFLOW_PORT="9001", MLFLOW_PORT="9002", INFERENCE_PORT="9003")
    found = published(chosen["services"])
    assert found["airflow-apiserver"] == ["10.0.0.1:9001:8080"]
    assert found["mlflow"] == ["10.0.0.1:9002:5000"]
    assert found["torchserve"] == ["10.0.0.1:9003:8085"]
    assert found["proxy"] == ["127.0.0.1:8443:8443"], "the door has an address of its own"
    door = resolved(FILES[0], SPIRA_APP_BIND="10.0.0.1", APP_PORT="9004")["services"]
    assert published(door)["proxy"] == ["10.0.0.1:9004:8443"]
    assert published(door)["mlflow"] == ["127.0.0.1:5000:5000"]
    settings = chosen["services"]["airflow-scheduler"]["environment"]
    assert settings["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:9001"
    assert settings["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-apiserver:8080/execution/"


def test_the_socket_is_the_proxys_alone(services):
    holders = {
        n for n, s in services.items() if any("docker.sock" in place for pair in mounts(s).items() for place in pair)
    }
    assert holders == {"engine-proxy"}


def test_the_proxy_is_reached_from_the_scheduler_alone(services):
    assert networks(services["engine-proxy"]) == {"engine"}
    assert {name for name, service in services.items() if "engine" in networks(service)} == {
        "engine-proxy",
        "airflow-scheduler",
    }


def test_steps_reach_the_model_server_and_the_repository_alone(services):
    assert {name for name, service in services.items() if "steps" in networks(service)} == {"torchserve", "mlflow"}
    assert networks(services["postgres"]) == {"control", "records"}


def test_networks_are_internal_but_the_published_one(stack, services):
    assert {name for name, network in stack["networks"].items() if not network.get("internal")} == {"published"}
    assert {name for name, service in services.items() if "published" in networks(service)} == set(PORTS)
    options = stack["networks"]["published"]["driver_opts"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_hardened(services, name):
    service = services[name]
    assert not service.get("privileged")
    assert not {"cap_add", "devices", "pid", "ipc", "userns_mode"} & set(service)
    assert service.get("network_mode") in (None, "none")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert float(service["cpus"]) > 0
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["pull_policy"] == "never"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_comes_back_and_says_how_it_is(services, name):
    service = services[name]
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert ("healthcheck" in service) == (name not in ONCE)


def test_no_secret_in_an_environment(services):
    for service in services.values():
        for name, value in (service.get("environment") or {}).items():
            named = re.search(r"PASSWORD|SECRET|TOKEN|FERNET", name)
            assert not named or str(value).startswith("/run/secrets/"), name
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), name


def test_secrets_are_files_that_git_ignores(stack):
    for secret in stack["secrets"].values():
        file = Path(secret["file"])
        assert file.parent == ROOT / "var/secrets"
        assert subprocess.run(["git", "check-ignore", "-q", str(file)], cwd=ROOT, check=False).returncode == 0


def test_each_gets_no_more_secrets_than_it_needs(services):
    held = {n: {s["source"] if isinstance(s, dict) else s for s in v.get("secrets", ())} for n, v in services.items()}
    assert held["mlflow"] == {"postgres_password"}
    assert held["postgres"] == {"postgres_password", "app_database_password"}
    assert held["gateway"] == {"gateway_demo_key", "gateway_app_key"}
    assert held["app"] == held["collect"]
    assert held["app"] == {"app_database_password", "app_first_password", "nats_token", "pseudonym_key"}
    assert held["app-worker"] == {"gateway_app_key", "nats_token"}
    assert held["nats"] == {"nats_token"}
    assert not held["proxy"]
    assert not held["torchserve"] | held["engine-proxy"] | held["places"]


def test_the_gateway_reaches_the_model_server_alone_and_reads_its_keys(services):
    assert {name for name, service in services.items() if "serving" in networks(service)} == {
        "torchserve",
        "gateway",
        "prometheus",
    }
    assert networks(services["gateway"]) == {"serving", "asking", "published"}
    assert services["torchserve"]["networks"]["serving"] == {"aliases": ["model-server"]}
    assert services["gateway"]["environment"]["SPIRA_INFERENCE"] == "http://model-server:8085"
    keys = next(m for m in services["gateway"]["volumes"] if "/torchserve" in str(m))
    assert keys.get("read_only") if isinstance(keys, dict) else keys.endswith(":ro")


def rights(service: dict) -> dict[str, str]:
    """Target -> rw or ro."""
    found = {}
    for mount in service.get("volumes", ()):
        long = isinstance(mount, dict)
        target, right = (
            (mount["target"], "ro" if mount.get("read_only") else "rw") if long else [*mount.split(":"), "rw"][1:3]
        )
        found[target] = right
    return found


@pytest.mark.parametrize(
    ("network", "members"),
    [
        ("records", {"postgres", "app", "collect"}),
        ("messages", {"nats", "app", "app-worker", "collect"}),
        ("asking", {"gateway", "app", "app-worker", "prometheus"}),
        ("entrance", {"proxy", "app", "collect"}),
    ],
)
def test_the_two_ends_reach_what_they_need(services, network, members):
    assert {name for name, service in services.items() if network in networks(service)} == members


def test_the_two_ends_are_on_no_other_network(services):
    ends = {"nats", "app", "app-worker", "collect"}
    assert set.union(*(networks(services[name]) for name in ends)) == {"records", "messages", "asking", "entrance"}
    assert networks(services["proxy"]) == {"entrance", "published"}


def test_collection_alone_writes_the_lake_and_the_app_alone_what_it_was_asked(services):
    held = {name: rights(services[name]) for name in ("app", "app-worker", "collect")}
    assert held["collect"] == {"/lake": "rw", "/inferences": "ro", "/trail": "rw"}
    assert held["app"] == {"/lake": "ro", "/inferences": "rw", "/state": "rw", "/live": "rw", "/trail": "rw"}
    assert held["app-worker"] == {"/inferences": "ro"}
    assert {name for name, service in services.items() if "/lake" in rights(service)} == {"places", "app", "collect"}


def test_a_certificate_may_be_handed_in(services, tmp_path):
    assert mounts(services["proxy"]) == {"/tls": "tls"}
    chosen = resolved(FILES[0], SPIRA_TLS=str(tmp_path))
    assert mounts(chosen["services"]["proxy"]) == {"/tls": str(tmp_path)}


def test_the_model_server_cannot_write_its_store(services):
    mount = next(m for m in services["torchserve"]["volumes"] if "/models" in str(m))
    assert mount.get("read_only") if isinstance(mount, dict) else mount.endswith(":ro")


def test_no_service_but_the_one_that_makes_them_sees_the_signing_keys(services):
    held = {n for n, v in services.items() if any(s in str(v.get("volumes")) for s in ("/signing", "/trust"))}
    assert held == {"places"}


def test_steps_and_proxy_agree(services):
    step, proxy = services["airflow-scheduler"]["environment"], services["engine-proxy"]["environment"]
    assert step["SPIRA_RUNTIME"] == "docker"
    assert step["DOCKER_HOST"] == "tcp://engine-proxy:2375"
    assert step["SPIRA_IMAGE"] == proxy["SPIRA_ALLOWED_IMAGES"]
    assert step["SPIRA_NETWORK"] == proxy["SPIRA_ALLOWED_NETWORKS"]
    assert step["SPIRA_MEMORY"] == proxy["SPIRA_MAX_MEMORY"]
    assert step["SPIRA_CPUS"] == proxy["SPIRA_MAX_CPUS"]
    volumes = [step[f"SPIRA_{name}_VOLUME"] for name in ("LAKE", "RUNS", "MODELS")]
    assert proxy["SPIRA_ALLOWED_VOLUMES"].split(",") == [
        *volumes,
        *(step[f"SPIRA_{name}_VOLUME"] + ":ro" for name in ("KEYS", "SIGNING_KEY", "VERIFY_KEY", "AUDIT", "LIVE")),
    ]


def test_step_volumes_exist_under_the_names_that_steps_are_told():
    chosen = resolved(FILES[0], SPIRA_STACK_NAME="other")
    told = chosen["services"]["airflow-scheduler"]["environment"]
    names = {volume["name"] for volume in chosen["volumes"].values()}
    assert {value for name, value in told.items() if name.endswith("_VOLUME")} <= names
    assert told["SPIRA_NETWORK"] == chosen["networks"]["steps"]["name"] == "other-steps"
    assert all(name.startswith("other-") for name in names)
    assert told["SPIRA_STACK_NAME"] == "other"


def test_the_scheduler_and_the_dag_processor_read_the_same(services):
    scheduler, processor = (dict(services[f"airflow-{n}"]["environment"]) for n in ("scheduler", "dag-processor"))
    scheduler.pop("DOCKER_HOST")
    assert scheduler == processor


def test_no_gpu_unless_granted(services):
    assert services["engine-proxy"]["environment"]["SPIRA_ALLOW_GPU"] == "false"
    assert services["airflow-scheduler"]["environment"]["SPIRA_GPUS"] == "none"


@pytest.mark.parametrize(("asked", "granted"), [({}, "all"), ({"SPIRA_GPUS": "1"}, "1")])
def test_gpu_overlay(services, asked, granted):
    chosen = resolved(*FILES, **asked)["services"]
    assert chosen["engine-proxy"]["environment"]["SPIRA_ALLOW_GPU"] == "true"
    for name in ("airflow-scheduler", "airflow-dag-processor"):
        assert chosen[name]["environment"]["SPIRA_GPUS"] == granted
    assert published(chosen) == published(services)


def test_grafana_overlay(tmp_path):
    image = "grafana/grafana@sha256:" + "0" * 64
    chosen = compose.settings({"SPIRA_GRAFANA_IMAGE": image}, {}, tmp_path, tmp_path)
    assert chosen["COMPOSE_FILE"].endswith(":" + str(ROOT / "docker-compose.grafana.yaml"))
    service = resolved(FILES[0], "docker-compose.grafana.yaml", SPIRA_GRAFANA_IMAGE=image)["services"]["grafana"]
    assert service["image"] == image
    assert published({"grafana": service}) == {"grafana": ["127.0.0.1:3000:3000"]}
    assert networks(service) == {"watching", "published"}
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True


def test_settings(tmp_path):
    socket = tmp_path / "docker.sock"
    socket.touch()
    env = {"SPIRA_STACK_NAME": "try", "SPIRA_MEMORY": "4g", "UNRELATED": "x"}
    chosen = compose.settings(env, {"SPIRA_TRAIN_IMAGE": IMAGE}, socket, tmp_path)
    assert chosen == {
        "COMPOSE_PROJECT_NAME": "try",
        "COMPOSE_FILE": str(ROOT / FILES[0]),
        "SPIRA_STACK_NAME": "try",
        "SPIRA_SECRETS": str(tmp_path / "secrets"),
        "SPIRA_DOCKER_GID": str(socket.stat().st_gid),
        "SPIRA_ENGINE_SOCKET": str(socket),
        "SPIRA_TRAIN_IMAGE": IMAGE,
        "SPIRA_MEMORY": "4g",
    }
    assert resolved(FILES[0], **chosen)["services"]["airflow-scheduler"]["environment"]["SPIRA_IMAGE"] == IMAGE


@pytest.mark.parametrize(
    ("asked", "flag", "granted"), [("", True, "all"), ("2", False, "2"), ("none", False, "none"), ("2", True, "2")]
)
def test_the_overlay_is_used_where_gpus_are_granted(tmp_path, asked, flag, granted):
    chosen = compose.settings({"SPIRA_GPUS": asked}, {}, tmp_path, tmp_path, gpu=flag)
    assert chosen["SPIRA_GPUS"] == granted
    assert (FILES[1] in chosen["COMPOSE_FILE"]) == (granted != "none")


@pytest.mark.parametrize("name", ["Spira", "-x", "a b", "a/b"])
def test_a_stack_name_that_cannot_be(tmp_path, name):
    with pytest.raises(SystemExit, match=r"SPIRA_STACK_NAME is .*; allowed: small letters"):
        compose.settings({"SPIRA_STACK_NAME": name}, {}, tmp_path, tmp_path)


def test_secrets_are_made_once(tmp_path, stack):
    folder = tmp_path / "secrets"
    secrets = set(stack["secrets"]) | {"grafana_password"}
    assert set(compose.make_secrets(folder)) == secrets
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {file.name: file.read_text() for file in folder.iterdir()}
    assert set(before) == secrets
    assert len(set(before.values())) == len(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}
    assert len(base64.urlsafe_b64decode(before["airflow_fernet_key"])) == 32
    assert len(json.loads(before["airflow_passwords.json"])["admin"]) >= 16

    (folder / "airflow_jwt_secret").unlink()
    assert compose.make_secrets(folder) == ["airflow_jwt_secret"]
    after = {file.name: file.read_text() for file in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"airflow_jwt_secret"}


def test_addresses():
    ports = {"AIRFLOW_PORT": "1", "MLFLOW_PORT": "2", "INFERENCE_PORT": "3"}
    assert compose.address("torchserve", ports) == "http://127.0.0.1:3"
    assert compose.address("mlflow", ports | {"SPIRA_BIND": "0.0.0.0"}) == "http://127.0.0.1:2"  # noqa: S104
    assert compose.address("airflow-apiserver", ports | {"SPIRA_BIND": "10.0.0.1"}) == "http://10.0.0.1:1"
    assert compose.address("postgres", ports) == ""
    assert compose.address("proxy", {"APP_PORT": "4", "SPIRA_BIND": "10.0.0.1"}) == "https://127.0.0.1:4"
    assert compose.address("proxy", {"APP_PORT": "4", "SPIRA_APP_BIND": "10.0.0.1"}) == "https://10.0.0.1:4"


@pytest.mark.parametrize(
    ("service", "said", "state"),
    [
        ("mlflow", "running 0 0 healthy", "healthy"),
        ("mlflow", "running 0 0 starting", "starting"),
        ("mlflow", "restarting 1 4 unhealthy", "restarting (4 times)"),
        ("mlflow", "exited 0 0 unhealthy", "ended (exit code 0)"),
        ("places", "exited 0 0 -", "done"),
        ("places", "exited 1 0 -", "ended (exit code 1)"),
        ("places", "running 0 0 -", "starting"),
        ("postgres", "created 0 0 starting", "waiting"),
    ],
)
def test_how_a_service_is(monkeypatch, service, said, state):
    monkeypatch.setattr(engine, "docker", lambda *words: "1f2e")
    answer = subprocess.CompletedProcess((), 0, f"{service} {said}\n", "")
    monkeypatch.setattr(engine, "run", lambda *words: answer)
    assert engine.states("try") == {service: state}


@pytest.fixture
def ports(monkeypatch):
    """`compose._ports` where our own containers listen on 9000, and somebody else on 9001."""
    monkeypatch.setattr(engine, "docker", lambda *words: "127.0.0.1:9000->8080/tcp")
    monkeypatch.setattr(compose, "is_free", lambda port: port not in (9000, 9001))
    for name in PORT_NAMES:
        monkeypatch.delenv(name, raising=False)

    def ask(**asked: str) -> dict[str, str]:
        for name, port in asked.items():
            monkeypatch.setenv(name, port)
        return compose._ports("try")

    return ask


def test_ports_are_the_defaults_or_those_asked_for(ports):
    found = {
        "AIRFLOW_PORT": "9000",
        "MLFLOW_PORT": "5000",
        "INFERENCE_PORT": "8085",
        "GATEWAY_PORT": "8090",
        "PROMETHEUS_PORT": "9090",
        "APP_PORT": "8443",
    }
    assert ports(AIRFLOW_PORT="9000") == found


@pytest.mark.parametrize(
    ("port", "said"),
    [
        ("9001", "MLFLOW_PORT=9001: that port is in use; choose another: make compose-up MLFLOW_PORT=..."),
        ("80", "MLFLOW_PORT=80: not a port; choose a number from 1024 to 65535"),
        ("x", "MLFLOW_PORT=x: not a port"),
        ("8080", "AIRFLOW_PORT=8080 and MLFLOW_PORT=8080: give each service a port of its own"),
    ],
)
def test_ports_that_cannot_be(ports, port, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        ports(MLFLOW_PORT=port)


def test_no_key_is_given_twice():
    """docker-compose 1.29 takes the last one without a word; Compose v2 refuses the file."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: {keys}"
        loader.flatten_mapping(node)
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    for file in FILES:
        assert yaml.load((ROOT / file).read_text(), Loader=Strict)["services"]  # noqa: S506 - a safe loader
