"""The service as a collector's page and a machine use it: a real process, over HTTP."""

import http.client
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from collecting import ROOT, agrees, environment, facts_json, known, rows, service, sound
from deliveries import voice, wav

from collect import ledger, settings
from serve.gateway.settings import Mistake
from spira_train.store import digest_bytes

pytestmark = pytest.mark.slow


def test_an_upload_lands_and_the_same_again_is_told(served):
    said = served.send(sound(1), subject="RGH 77", site="ward 1")
    assert said.status_code == 201, said.text
    kept = said.json()
    assert (kept["state"], kept["digest"], kept["again"]) == ("landed", digest_bytes(sound(1)), False)
    again = served.send(sound(1), subject="RGH 77")
    assert (again.status_code, again.json()) == (200, kept | {"again": True})
    assert [row["site"] for row in rows(served.lake, kept["day"]) if kept["digest"] in row["file_path"]] == ["ward 1"]
    other = served.send(sound(1), subject="RGH 78")
    assert (other.status_code, other.json()["error"]) == (409, "other_subject")


def test_two_hundred_at_once_are_all_kept_and_each_lands_once(served):
    def send(number: int) -> requests.Response:
        return served.send(sound(1000 + number, 1.0), subject=f"load {number}", label="control")

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(send, range(200)))
    assert [said.status_code for said in answers] == [201] * 200
    ids = [said.json()["id"] for said in answers]
    assert len(set(ids)) == 200
    lake, day = served.lake, answers[0].json()["day"]
    landed = [row["file_path"][:32] for row in rows(lake, day)]
    assert sorted(set(ids)) == sorted(name for name in landed if name in set(ids))
    events = [name for name in ledger.listing(lake, day).names if name.split("-")[2][:32] in set(ids)]
    assert len(events) == 200
    agrees(lake)


def test_the_same_recording_from_many_at_once_is_received_once(served):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: served.send(sound(2), subject="eva"), range(20)))
    assert sorted(said.status_code for said in answers) == [200] * 19 + [201]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: served.send(sound(3), subject=f"eva {n}"), range(20)))
    assert sorted(said.status_code for said in answers) == [201] + [409] * 19


def test_a_label_later_and_a_withdrawal(served):
    kept = served.send(sound(4), subject="ivo", label=None).json()
    assert kept["state"] == "waiting"
    path = f"/v1/recordings/{kept['id']}/label"
    for role in ("clinician", "collector"):
        said = served.ask("POST", path, role, json={"label": "patient", "why": "X-ray"})
        assert (said.status_code, said.json()["state"]) == (200, "landed")
    listed = {one["id"]: one for one in served.ask("GET", "/v1/recordings", params={"day": kept["day"]}).json()}
    assert (listed[kept["id"]]["state"], listed[kept["id"]]["label"]) == ("landed", "patient")
    assert "ivo" not in json.dumps(listed)
    left = served.ask("POST", "/v1/subjects/withdraw", "engineer", json={"subject": "ivo"}).json()
    assert (left["recordings"], left["days"]) == (1, [kept["day"]])
    assert served.send(sound(5), subject="ivo").json()["error"] == "withdrawn"
    assert served.ask("POST", path, json={"label": "control"}).status_code == 409
    today = served.ask("GET", "/v1/days", "engineer").json()[0]
    assert today["day"] == kept["day"]
    assert today["withdrawn"] >= 1
    assert not today["closed"]
    assert today["received"] == today["landed"] + today["waiting"] + today["withdrawn"]


@pytest.mark.parametrize(
    ("more", "error"),
    [({"nome": "Maria"}, "personal_data"), ({"device": "ask ana@hospital.org"}, "personal_data"),
     ({"consent": False}, "consent"), ({"age": 200}, "field"), ({"prontuario": "1"}, "personal_data")],
)  # fmt: skip
def test_facts_that_cannot_be_taken(served, more, error):
    said = served.send(sound(6), **more)
    assert (said.status_code, said.json()["error"]) == (422, error)
    assert "Maria" not in said.text
    assert "ana@" not in said.text
    assert set(said.json()) == {"error", "detail", "request_id"}


def test_a_hospital_number_is_taken_as_the_subject(served):
    form = known(prontuario="5551234")
    del form["subject"]
    files = {"recording": ("x", sound(7)), "facts": (None, json.dumps(form))}
    assert served.ask("POST", "/v1/recordings", files=files).status_code == 201
    assert served.ask("POST", "/v1/subjects/withdraw", json={"subject": "5551234"}).json()["recordings"] == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", "undecodable"), (b"MZ" + bytes(99), "undecodable"), (wav(voice(0, 1) * 0), "silent"),
     (sound(0, 0.3), "too_short")],
)  # fmt: skip
def test_recordings_that_cannot_be_used(served, content, error):
    said = served.send(content)
    assert (said.status_code, said.json()["error"]) == (422, error)


@pytest.mark.parametrize(
    ("files", "status", "error"),
    [({"facts": (None, facts_json())}, 422, "no_recording"), ({"recording": ("a", sound())}, 422, "no_facts"),
     ({"recording": ("a", sound()), "facts": (None, "{")}, 422, "not_json"),
     ({"recording": ("a", sound()), "facts": (None, "[]")}, 422, "not_json"),
     ({"recording": ("a", sound()), "facts": (None, "[" * 50_000)}, 422, "not_json"), (None, 415, "content_type")],
)  # fmt: skip
def test_forms_that_are_none(served, files, status, error):
    said = served.ask("POST", "/v1/recordings", files=files)
    assert (said.status_code, said.json()["error"]) == (status, error)


def test_too_large_is_refused_before_it_is_read(served):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/recordings")
    for name, value in (("Authorization", f"Bearer {served.keys['collector']}"), ("Content-Length", str(1 << 40))):
        connection.putheader(name, value)
    connection.endheaders()
    said = connection.getresponse()
    assert (said.status, json.loads(said.read())["error"]) == (413, "too_large")
    connection.close()


def test_who_may_do_what(served):
    anybody = requests.post(f"{served.url}/v1/recordings", files={"recording": sound()}, timeout=10)
    assert anybody.status_code == 401
    assert served.send(sound(8), "clinician").status_code == 403
    assert served.ask("POST", "/v1/subjects/withdraw", "clinician", json={"subject": "x"}).status_code == 403
    assert (
        served.ask("POST", f"/v1/recordings/{'0' * 32}/label", "engineer", json={"label": "control"}).status_code == 403
    )
    assert served.ask("POST", f"/v1/recordings/{'0' * 32}/label", json={"label": "control"}).status_code == 404
    assert served.ask("POST", f"/v1/recordings/{'0' * 32}/label", json={"label": "ill"}).status_code == 422
    assert served.ask("GET", "/v1/recordings", params={"day": "../.."}).json()["error"] == "day"
    assert served.ask("GET", "/v1/recordings", params={"day": "2999-01-01"}).status_code == 422


def test_the_trail_and_the_log_name_nobody(served):
    served.send(sound(9), subject="Maria Secreta", site="Hospital Secreto")
    lines = [json.loads(line) for line in (served.home / "trail" / "trail.jsonl").read_text().splitlines()]
    assert {"received", "withdrawn", "labelled"} <= {line["what"] for line in lines}
    told = (served.home / "trail" / "trail.jsonl").read_text() + served.log()
    for word in ("Secret", "127.0.0.1", "name-of-a-person"):
        assert word not in told
    stored = b"".join(
        path.read_bytes() for path in (served.home / "lake").rglob("*") if path.suffix in (".json", ".csv")
    )
    for word in (b"Maria", b"127.0.0.1", b"name-of-a-person"):
        assert word not in stored


def test_it_explains_itself(served):
    page = requests.get(f"{served.url}/docs", timeout=10)
    assert page.ok
    for word in ("/v1/recordings", "/v1/subjects/withdraw", "recording=@sentence.wav", "consent_training"):
        assert word in page.text


def test_the_collection_needs_no_torch():
    blocked = "import sys\nfor m in ('torch', 'torchaudio', 'mlflow', 'airflow', 'pyarrow'): sys.modules[m] = None\n"
    code = blocked + "import collect.__main__, collect.service, collect.labels, collect.imports, access.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_setting_that_is_wrong_is_named(tmp_path):
    env = environment(tmp_path) | {"SPIRA_COLLECT_PORT": "x"}
    command = [sys.executable, "-m", "collect", "serve"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "SPIRA_COLLECT_PORT=x" in done.stderr
    with pytest.raises(Mistake, match="SPIRA_COLLECT_POTR: no such setting"):
        settings.read({"SPIRA_COLLECT_POTR": "1"})


def test_a_start_finishes_what_a_kill_left(tmp_path):
    running = service(tmp_path)
    kept = running.send(sound()).json()
    running.kill()
    lake = running.lake
    lake.fs.mv(lake.path("landing", kept["day"], f"{kept['digest']}.wav"),
               lake.path("collection", kept["day"], "waiting", f"{kept['digest']}.wav"))  # fmt: skip
    lake.fs.rm_file(lake.path("landing", kept["day"], "metadata.csv"))
    running.start()
    agrees(lake)
    assert len(rows(lake, kept["day"])) == 1
    assert running.stop() == 0
