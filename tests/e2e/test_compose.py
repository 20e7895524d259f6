"""The whole stack in containers, as docker-compose.yaml describes it: runs, predictions, kills, restarts. One stack."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest
import requests
from deliveries import bring_up_to
from following import ended, newest_day, task_states, until
from pages import Pages
from runs import free_ports

from local import compose, demo, engine, volumes
from local.airflow_api import Airflow
from serve import torchserve

pytestmark = [
    pytest.mark.slow, pytest.mark.docker, pytest.mark.airflow, pytest.mark.torchserve, pytest.mark.timeout(1500),
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
STACK = f"spira-test-{os.getpid()}"
# Enough to be looked at while it works, and killed in the middle. The features stay those of the scheduled run.
LONG = {"preset": "fast", "train.patience": 0, "train.epochs": 60, "approve": False}


@pytest.fixture(scope="module")
def newest() -> str:
    return f"{newest_day()}"


@pytest.fixture(scope="module")
def place(tmp_path_factory, newest, command):
    """The stack, with a simulated lake delivered; down, and its volumes deleted, before any other module begins."""
    if engine.run("docker", "version").returncode:
        pytest.skip("no Docker engine answers")
    folder = tmp_path_factory.mktemp("compose")
    subprocess.run([sys.executable, str(ROOT / "images/build.py")], check=True)
    words = ("--days", demo.DAYS, "--subjects", demo.SUBJECTS, *demo.VOICES)
    code, _, errors = command("simulate", "--lake", folder / "lake", *words)
    assert code == 0, errors
    bring_up_to(folder / "lake", date.fromisoformat(newest))
    names = ("AIRFLOW_PORT", "MLFLOW_PORT", "INFERENCE_PORT", "GATEWAY_PORT", "PROMETHEUS_PORT", "APP_PORT")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIRA_VAR", str(folder))
        patch.setenv("SPIRA_STACK_NAME", STACK)
        patch.setenv("SPIRA_PRESET", "fast")
        for name, port in zip(names, free_ports(len(names)), strict=True):
            patch.setenv(name, str(port))
        try:
            compose.up()
            assert (
                len(volumes.deliver(compose.running(), folder / "lake")) == demo.DAYS + 2
            )  # the noise and the data card
            yield folder
        finally:
            compose.down()
            left = engine.docker("volume", "ls", "-q", "--filter", f"name={STACK}-").split()
            engine.docker("volume", "rm", *left)
            assert engine.docker("ps", "-aq", "--filter", f"label=spira.stack={STACK}") == ""


@pytest.fixture
def airflow(place) -> Airflow:
    return login()


def login() -> Airflow:
    chosen = compose.running()
    return Airflow.login(compose.address("airflow-apiserver", chosen), *compose.credentials(chosen))


@pytest.fixture(scope="module")
def served(place, newest) -> dict:
    """The scheduled run of the newest day: it starts as soon as the DAG is unpaused, and its model is served."""
    api = login()
    until(api.knows)
    assert api.import_errors() == []
    api.pool("gpu", 1, "")
    api.pause(False)
    run = until(lambda: next(iter(api.runs(run_type="scheduled")), None))
    assert run["partition_key"] == newest
    run = ended(api, run["dag_run_id"])
    assert run["state"] == "success", demo.why(api, run)
    return run


def test_a_scheduled_run_trains_in_containers_and_its_model_is_served(airflow, served, place):
    states = task_states(airflow, served["dag_run_id"])
    assert {states.pop("approve"), states.pop("rejected"), states.pop("refused")} == {"skipped"}
    assert set(states.values()) == {"success"}
    log = airflow.log(served["dag_run_id"], "train")
    assert "of image sha256:" in log  # by digest
    assert "no GPU here" in log
    assert "both blessings are signed by" in airflow.log(served["dag_run_id"], "register")
    answer = predict(place, recording(place))
    champion = airflow.result(served["dag_run_id"], "register")["summary"]["champion"]
    assert answer.json()["model"]["version"] == champion
    assert containers() == []


def test_only_who_has_a_token_gets_an_answer(served, place):
    url = compose.address("torchserve", compose.running())
    assert requests.post(f"{url}/predictions/spira", data=recording(place), timeout=20).status_code == 400
    assert predict(place, recording(place)).status_code == 200
    assert predict(place, b"no sound").status_code == 422


def test_the_gateway_answers_its_client_and_reaches_the_model_server_alone(airflow, served, place):
    url = f"{compose.address('gateway', compose.running())}/v1/predict"
    kind, key = {"Content-Type": "audio/wav"}, (place / "secrets/gateway_demo_key").read_text()
    assert requests.post(url, data=recording(place), headers=kind, timeout=20).status_code == 401
    answer = requests.post(url, data=recording(place), headers=kind | {"X-API-Key": key}, timeout=20)
    champion = airflow.result(served["dag_run_id"], "register")["summary"]["champion"]
    assert answer.json()["model"]["version"] == champion
    assert champion in inside("gateway", "cat", "/audit/audit.jsonl").stdout
    for outsider in (("mlflow", 5000), ("postgres", 5432), ("airflow-apiserver", 8080), ("torchserve", 8086)):
        reach = f"import socket; socket.create_connection({outsider}, 3)"
        assert inside("gateway", "python", "-c", reach).returncode != 0, outsider


def test_people_come_in_by_the_door_and_get_the_models_answer(airflow, served, place):
    door = compose.address("proxy", compose.running())
    (place / "door.pem").write_text(inside("proxy", "cat", "/tls/tls.crt").stdout)  # it signed it itself
    answer = requests.get(door.replace("https", "http"), allow_redirects=False, timeout=20)
    assert (answer.status_code, answer.headers["location"]) == (308, f"{door}/")
    with requests.Session() as browser:
        browser.trust_env = False  # the surroundings name authorities of their own
        browser.verify = str(place / "door.pem")
        password = (place / "secrets/app_first_password").read_text()
        me = browser.post(f"{door}/v1/session", json={"name": "demo", "password": password}, timeout=20)
        assert "Secure; " in f"{me.headers['set-cookie']}; "
        assert me.headers["strict-transport-security"]
        browser.headers["X-CSRF-Token"] = me.json()["csrf"]
        facts = {"consent": True, "subject": "RGH 1", "label": "control"}  # not for training: it waits
        kept = browser.post(
            f"{door}/collect/v1/recordings",
            files={"recording": recording(place)},
            data={"facts": json.dumps(facts)},
            timeout=20,
        )
        assert (kept.status_code, kept.json()["state"]) == (201, "waiting")
        # Neither, dying, loses what was taken; nor does the worker, but then JetStream waits a minute for it.
        for service in ("nats", "app"):
            asked, container = f"{door}/v1/inferences/{uuid.uuid4().hex}", container_of(service)
            assert browser.put(asked, data=recording(place), timeout=20).status_code == 202
            engine.docker("kill", container)
            engine.docker("start", container)
            told = until(lambda url=asked: answered(browser, url), 60)
            champion = airflow.result(served["dag_run_id"], "register")["summary"]["champion"]
            assert told.json()["answer"]["model"]["version"] == champion, service
    for service, outsider in {
        "app": ("mlflow", 5000),
        "app-worker": ("postgres", 5432),
        "collect": ("model-gateway", 8090),
        "proxy": ("nats", 4222),
    }.items():
        reach = f"import socket; socket.create_connection({outsider}, 3)"
        assert inside(service, "python3.11", "-c", reach).returncode != 0, (service, outsider)


def test_prometheus_reads_all_four_and_the_dashboard_asks_what_it_understands(served, place):
    url = f"{compose.address('prometheus', compose.running())}/api/v1/query"

    def ask(text: str) -> list[dict]:
        answer = requests.get(url, params={"query": text}, timeout=20)
        assert answer.status_code == 200, (text, answer.text)
        return answer.json()["data"]["result"]

    until(lambda: [float(one["value"][1]) for one in ask("up")] == [1, 1, 1, 1], 120)
    assert until(lambda: ask('spira_gateway_requests_total{status="200"}'), 60)[0]["metric"]["version"] != "none"
    assert until(lambda: ask("BatchRecordings_count"), 60)
    dashboard = json.loads((ROOT / "images/grafana/dashboard.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for text in texts:
        ask(text.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$version", ".*"))
    series = {name for text in texts for name in re.findall(r"(?:spira_gateway_|[A-Z]\w+_)\w+", text)}
    known = set(requests.get(url.replace("query", "label/__name__/values"), timeout=20).json()["data"])
    seldom = {"spira_gateway_shadow_total", "spira_gateway_fallbacks_total", "spira_gateway_errors_total"}
    seldom |= {"spira_gateway_warnings_total", "spira_gateway_shadow_difference_bucket"}
    assert series - known <= seldom  # a metric with labels is there once it has a value
    assert seldom <= series


def test_upkeep_agrees_and_the_watch_reads_the_audit(airflow, served, place):
    kept = until(lambda: next((r for r in airflow.runs("spira_upkeep") if r["state"] == "success"), None), 400)
    assert airflow.result(kept["dag_run_id"], "reconcile", dag_id="spira_upkeep")["mended"] == []
    run_id = airflow.trigger({}, dag_id="spira_watch")
    until(lambda: airflow.run(run_id, "spira_watch")["state"] in ("success", "failed"), 200)
    found = airflow.result(run_id, "watch", dag_id="spira_watch")
    assert found["version"] == airflow.result(served["dag_run_id"], "register")["summary"]["champion"]
    assert found["answers"] >= 1
    assert airflow.tasks(run_id, "spira_watch")["retrain"]["state"] == "skipped"


def test_a_backfill_of_three_days_prepares_them(airflow, served, newest):
    days = [f"{date.fromisoformat(newest) - timedelta(days=n)}" for n in (3, 2, 1)]
    number = airflow.backfill(days[0], days[-1], {"preset": "fast"}, again=True)
    until(lambda: airflow.call("GET", f"backfills/{number}")["completed_at"])
    runs = airflow.backfill_runs(number)
    assert sorted(runs) == days
    for run in runs.values():
        assert ended(airflow, run["dag_run_id"])["state"] == "success"
        states = task_states(airflow, run["dag_run_id"])
        assert (states["features"], states["train"], states["register"]) == ("success", "skipped", "skipped")


def test_a_run_from_the_form_that_the_gate_refuses(airflow, served, newest, place):
    before = predict(place, recording(place)).json()["model"]
    chosen = compose.running()
    with Pages(compose.address("airflow-apiserver", chosen), *compose.credentials(chosen)) as pages:
        run_id = pages.trigger({"partition": newest, "train.epochs": 1, "train.learning_rate": "0.0000001"})
        run = ended(airflow, run_id)
        assert "refused" in pages.run(run_id, "refused-run")
        pages.graph(served["dag_run_id"])
        mlflow = compose.address("mlflow", chosen)
        assert "champion" in pages.other(f"{mlflow}/#/models/spira", "champion", "registry")
    assert run["state"] == "failed"
    states = task_states(airflow, run_id)
    assert [name for name, state in states.items() if state == "failed"] == ["refused"]
    assert "refused by the gate: " in airflow.log(run_id, "refused")
    conf = airflow.run(run_id)["conf"]
    assert (conf["train.epochs"], conf["train.learning_rate"]) == (1, 1e-7)
    assert predict(place, recording(place)).json()["model"] == before  # the champion goes on


def test_a_killed_worker_does_not_start_a_second_training(airflow, served, newest):
    run_id = airflow.trigger(LONG | {"partition": newest, "train.learning_rate": 0.0011})
    container = training(airflow, run_id)
    kill_worker(airflow.tasks(run_id)["train"]["id"])
    until(lambda: airflow.tasks(run_id)["train"]["try_number"] == 2, 180)
    until(lambda: task_states(airflow, run_id)["train"] not in ("running", "queued", "scheduled", "up_for_retry"), 600)
    assert task_states(airflow, run_id)["train"] == "success"
    said = airflow.log(run_id, "train", 2)
    assert f"going on with container {container[:12]}, which try 1 left" in said
    assert "epoch   1 of 60" in said  # from the first line on
    ended(airflow, run_id)
    assert containers() == []


def test_a_task_that_is_failed_by_hand_stops_its_container(airflow, served, newest):
    run_id = airflow.trigger(LONG | {"partition": newest, "train.learning_rate": 0.0012, "train.epochs": 300})
    training(airflow, run_id)
    path = f"dags/spira_training/dagRuns/{run_id}/taskInstances/train"
    airflow.call("PATCH", path, {"new_state": "failed"})
    until(lambda: containers() == [], 60)
    assert ended(airflow, run_id)["state"] == "failed"


def test_what_the_proxy_does_not_allow_reads_as_that(place, served):
    """From inside the scheduler, the only one that reaches the engine at all."""
    code = (
        "import docker; e = docker.APIClient('tcp://engine-proxy:2375', version='auto');"
        "h = e.create_host_config(privileged=True, binds=['/:/host']);"
        f"e.create_container(image='{compose.running()['SPIRA_TRAIN_IMAGE']}', host_config=h)"
    )
    said = inside("airflow-scheduler", "python", "-c", code)
    assert said.returncode != 0
    assert "403" in said.stderr and "Privileged" in said.stderr
    for outsider in ("airflow-apiserver", "airflow-dag-processor"):
        reach = "import socket; socket.create_connection(('engine-proxy', 2375), 3)"
        assert inside(outsider, "python", "-c", reach).returncode != 0


@pytest.mark.parametrize("service", ["postgres", "engine-proxy", "mlflow", "airflow-apiserver", "airflow-scheduler",
                                     "airflow-dag-processor", "airflow-triggerer"])  # fmt: skip
def test_a_restart_costs_no_prediction(place, served, service):
    with predictions(place) as answers:
        restart(service)
    assert len(answers) > 5
    assert set(answers) == {200}


def test_torchserve_comes_back_with_its_versions_and_its_default(place, served):
    before = status(place)
    restart("torchserve")
    until(lambda: status(place) == before, 60)
    assert before["default"] == predict(place, recording(place)).json()["model"]["version"]


def test_down_and_up_again_loses_nothing(place, served):
    before, runs, champion = status(place), {run["dag_run_id"] for run in login().runs()}, champions()
    compose.down()
    compose.up()
    until(lambda: status(place) == before, 60)
    assert {run["dag_run_id"] for run in login().runs()} >= runs
    assert champions() == champion
    assert predict(place, recording(place)).ok


def training(airflow: Airflow, run_id: str) -> str:
    """Wait until the run's training is under way; the id of its container."""
    until(
        lambda: "epoch" in engine.run("docker", "logs", *containers("train")).stderr if containers("train") else "", 300
    )
    (container,) = containers("train")
    return container


def kill_worker(instance: str) -> None:
    """SIGKILL the worker that runs a task instance, with all its children; the step's container is none of them."""
    rows = [line.split(None, 2) for line in inside_processes("airflow-scheduler")]
    doomed = {pid for pid, _, words in rows if instance in words}
    assert doomed, rows
    while more := {pid for pid, parent, _ in rows if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        os.kill(int(pid), signal.SIGKILL)


def inside_processes(service: str) -> list[str]:
    """`pid ppid command`, in this machine's numbers, of each process of a service."""
    return engine.docker("top", container_of(service), "-eo", "pid,ppid,args").splitlines()[1:]


def containers(task: str = "") -> list[str]:
    """Ids of the trainings' containers of this stack, of one task or of all; the upkeep's come and go."""
    labels = [f"label=spira.stack={STACK}", "label=spira.dag=spira_training"] + (
        [f"label=spira.task={task}"] if task else []
    )
    return engine.docker("ps", "-aq", "--no-trunc", *(w for one in labels for w in ("--filter", one))).split()


def restart(service: str) -> None:
    engine.docker("restart", container_of(service))
    until(lambda: engine.states(STACK)[service] == "healthy", 120)


def answered(browser: requests.Session, url: str) -> requests.Response | None:
    """What the app says of an inference, once it has ended."""
    answer = browser.get(url, timeout=20)
    return answer if answer.ok and answer.json()["state"] != "processing" else None


def inside(service: str, *words: str) -> subprocess.CompletedProcess:
    return engine.run("docker", "exec", container_of(service), *words)


def container_of(service: str) -> str:
    labels = (f"{engine.PROJECT}={STACK}", f"{engine.SERVICE}={service}")
    (container,) = engine.docker("ps", "-q", *(w for label in labels for w in ("--filter", f"label={label}"))).split()
    return container


def status(place: Path) -> dict:
    """What TorchServe has loaded, asked from inside: its management is not published."""
    code = (
        "import json; from pathlib import Path; from serve import torchserve as t;"
        "print(json.dumps(t.status(t.Server(keys=Path('/torchserve/key_file.json')))))"
    )
    said = inside("torchserve", "python", "-c", code)
    return json.loads(said.stdout.splitlines()[-1]) if said.returncode == 0 else {}


def champions() -> dict:
    url = f"{compose.address('mlflow', compose.running())}/api/2.0/mlflow/registered-models/get"
    model = requests.get(url, params={"name": "spira"}, timeout=20).json()["registered_model"]
    return {alias["alias"]: alias["version"] for alias in model["aliases"]}


def predict(place: Path, content: bytes) -> requests.Response:
    """From outside, as a client would: the published port and a token."""
    keys = volumes.fetch(compose.running(), "keys", "key_file.json", place / "fetched")
    return torchserve.predict(torchserve.Server(compose.address("torchserve", compose.running()), "", keys), content)


def recording(place: Path) -> bytes:
    return next(p for p in sorted((place / "lake/landing").rglob("*.wav")) if p.stat().st_size > 200_000).read_bytes()


@contextmanager
def predictions(place: Path):
    """Ask for predictions all the while; yields the status of each answer, 0 for none."""
    keys = volumes.fetch(compose.running(), "keys", "key_file.json", place / "fetched")
    headers = {"Authorization": f"Bearer {json.loads(keys.read_text())['inference']['key']}"}
    url, content = f"{compose.address('torchserve', compose.running())}/predictions/spira", recording(place)
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.3):
            try:
                answers.append(requests.post(url, data=content, headers=headers, timeout=20).status_code)
            except requests.RequestException:
                answers.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    yield answers
    over.set()
    thread.join()
