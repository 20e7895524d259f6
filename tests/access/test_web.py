"""Logging in, over HTTP: cookies, roles, forged requests, guesses, keys."""

import json
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from access import accounts, web
from access.__main__ import main
from access.accounts import Login, Role, digest
from access.database import now, sessions
from access.settings import Settings, read
from access.web import COOKIE, Person, attach, router, who
from serve.gateway.problem import Problem
from serve.gateway.settings import Mistake

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a password of some length"
NURSE = {"name": "nurse", "password": PASSWORD}


def things(person: Annotated[Person, Depends(who(Role.clinician))]) -> dict[str, str]:
    return {"who": person.name}


def anything(person: web.Anyone) -> dict[str, str]:
    return {"who": person.name}


def fault() -> None:
    raise ValueError("Maria da Silva")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, what the app knows) of a real server with two accounts of people and one of a machine."""
    folder = tmp_path_factory.mktemp("access")
    app = FastAPI()
    access = attach(app, Settings(database=f"sqlite:///{folder}/app.db", trail=folder))
    app.include_router(router())
    app.add_api_route("/things", things, methods=["GET", "POST"])
    app.add_api_route("/anything", anything, methods=["GET"])
    app.add_api_route("/fault", fault, methods=["GET"])
    with access.write.begin() as session:
        accounts.add(session, "nurse", ["clinician"], PASSWORD)
        accounts.add(session, "boss", ["engineer"], PASSWORD)
        app.state.key = accounts.add(session, "ward-7", ["clinician"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", access, app.state.key
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(served):
    served[1].tries._known.clear()
    with httpx.Client(base_url=served[0]) as made:
        yield made


def log_in(client: httpx.Client, **credentials: str) -> str:
    answer = client.post("/v1/session", json=NURSE | credentials)
    assert answer.status_code == 200, answer.text
    return answer.json()["csrf"]


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert set(answer.json()) == {"error", "detail", "request_id"}
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    return answer.status_code, answer.json()["error"]


def test_from_login_to_logout(client, served):
    assert refused(client.get("/v1/session")) == (401, "session")
    answer = client.post("/v1/session", json=NURSE)
    assert (answer.json()["name"], answer.json()["roles"]) == ("nurse", ["clinician"])
    assert client.get("/v1/session").json() == answer.json()
    assert client.get("/things").json() == {"who": "nurse"}
    kept, csrf = client.cookies[COOKIE], answer.json()["csrf"]
    assert client.delete("/v1/session", headers={"X-CSRF-Token": csrf}).status_code == 204
    assert COOKIE not in client.cookies
    client.cookies.set(COOKIE, kept)  # a copy of the cookie opens nothing any more
    assert refused(client.get("/things")) == (401, "session")
    lines = [json.loads(line) for line in served[1].settings.trail_file.read_text().splitlines()]
    assert [(line["who"], line["what"]) for line in lines[-2:]] == [("nurse", "login"), ("nurse", "logout")]


def test_no_script_sees_the_cookie_and_no_other_site_sends_it(client):
    def flags(**headers: str) -> set[str]:
        said = client.post("/v1/session", json=NURSE, headers=headers).headers["set-cookie"]
        return {word.strip().lower() for word in said.split(";")[1:]}

    here = flags()
    assert {"httponly", "samesite=strict", "path=/"} <= here
    assert "secure" not in here
    assert "secure" in flags(Host="spira.hospital.example")  # from elsewhere it travels over TLS alone
    assert "secure" in flags(**{"X-Forwarded-Proto": "https"})  # the reverse proxy says so


def test_only_a_digest_of_the_cookie_is_kept(client, served):
    log_in(client)
    file = Path(served[1].engine.url.database)
    kept = b"".join(f.read_bytes() for f in file.parent.glob("app.db*"))
    assert digest(client.cookies[COOKIE]).encode() in kept
    assert client.cookies[COOKIE].encode() not in kept
    assert PASSWORD.encode() not in kept


def test_a_forged_request_is_refused(client):
    csrf = log_in(client)
    assert refused(client.post("/things")) == (403, "csrf")
    assert refused(client.post("/things", headers={"X-CSRF-Token": "0" * 64})) == (403, "csrf")
    headers = {"X-CSRF-Token": csrf}
    assert refused(client.post("/things", headers=headers | {"Origin": "https://elsewhere"})) == (403, "origin")
    assert client.post("/things", headers=headers | {"Origin": str(client.base_url)}).status_code == 200
    assert client.post("/things", headers=headers).status_code == 200
    assert refused(client.delete("/v1/session")) == (403, "csrf")
    with httpx.Client(base_url=client.base_url) as other:  # the token of another session
        log_in(other)
        assert refused(other.post("/things", headers=headers)) == (403, "csrf")
    elsewhere = client.post("/v1/session", json=NURSE, headers={"Origin": "https://elsewhere"})
    assert refused(elsewhere) == (403, "origin")


def test_a_role_is_needed(client):
    log_in(client, name="boss")
    assert refused(client.get("/things")) == (403, "role")
    assert client.get("/anything").json() == {"who": "boss"}


def test_a_wrong_name_and_a_wrong_password_look_alike(client, served):
    wrong = [{"name": "nurse", "password": "not the password"}, {"name": "nobody", "password": PASSWORD}]
    answers = [client.post("/v1/session", json=given) for given in [*wrong, {"name": "ward-7", "password": ""}]]
    assert [refused(answer) for answer in answers] == [(401, "credentials")] * 3
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert '"nobody"' not in served[1].settings.trail_file.read_text()  # it may have been a password


def test_guessing_ends_after_five_tries_even_all_at_once(client, served):
    codes: list[int] = []
    wrong = NURSE | {"password": "not the password"}

    def guess() -> None:
        codes.append(httpx.post(f"{served[0]}/v1/session", json=wrong, timeout=30).status_code)

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [401] * 5 + [429] * 7
    answer = client.post("/v1/session", json=NURSE)  # the right one has to wait as well
    assert refused(answer) == (429, "tries")
    assert 0 < int(answer.headers["retry-after"]) <= 301
    log_in(client, name="boss")  # others need not


def test_tries_are_forgotten_in_time_and_never_grow_without_end(monkeypatch):
    clock = [0.0]
    tries = web.Tries(lambda: clock[0])
    for _ in range(5):
        tries.take("nurse", "here")
    with pytest.raises(Problem):
        tries.take("nurse", "here")
    tries.take("nurse", "there")
    clock[0] = web.WITHIN
    tries.take("nurse", "here")
    monkeypatch.setattr(web, "REMEMBERED", 10)
    for number in range(50):
        tries.take(f"guess-{number}", "here")
    assert len(tries._known) <= 11


def test_a_database_that_is_away_is_said_so_and_counts_as_no_try(client, monkeypatch):
    def away(*_: object) -> None:
        raise OperationalError("SELECT 'Maria'", None, OSError("gone"))

    monkeypatch.setattr(accounts, "checked", away)
    for _ in range(7):
        answer = client.post("/v1/session", json=NURSE)
        assert refused(answer) == (503, "database")
        assert answer.headers["retry-after"] == "2"
        assert "Maria" not in answer.text
    monkeypatch.undo()
    log_in(client)


@pytest.mark.parametrize(("field", "age"), [("created_at", timedelta(hours=12)), ("seen_at", timedelta(hours=2))])
def test_a_session_ends(client, served, field, age):
    log_in(client)
    one = update(Login).where(Login.token == digest(client.cookies[COOKIE]))
    for seconds, code in ((-60, 200), (1, 401)):
        with served[1].write.begin() as session:
            session.execute(one.values({field: now() - age - timedelta(seconds=seconds)}))
        assert client.get("/things").status_code == code


def test_whoever_uses_a_session_keeps_it(client, served):
    log_in(client)
    with served[1].write.begin() as session:
        session.execute(update(Login).values(seen_at=now() - timedelta(minutes=90)))
    client.get("/things")
    with served[1].read() as session:
        assert now() - session.get(Login, digest(client.cookies[COOKIE])).seen_at < timedelta(minutes=1)


def test_a_machine_needs_no_token_against_forgery(client, served):
    assert client.post("/things", headers={"Authorization": f"Bearer {served[2]}"}).json() == {"who": "ward-7"}
    assert refused(client.post("/things", headers={"Authorization": "Bearer wrong"})) == (401, "key")
    log_in(client)  # a wrong key beside a good cookie is a wrong key
    assert refused(client.get("/things", headers={"Authorization": "Bearer wrong"})) == (401, "key")


def test_bad_fields_are_named_without_their_values(client):
    answer = client.post("/v1/session", json={"name": "x" * 41, "password": ["secret"]})
    assert refused(answer) == (422, "field")
    assert "secret" not in answer.text
    assert refused(client.get("/nowhere")) == (404, "not_found")


def test_a_fault_says_nothing_of_what_was_sent(client, caplog):
    assert refused(client.get("/fault")) == (500, "fault")
    assert "Maria" not in caplog.records[0].getMessage()


def test_a_new_password_ends_the_sessions(client, served):
    with served[1].write.begin() as session:
        accounts.add(session, "leaver", ["clinician"], PASSWORD)
    log_in(client, name="leaver")
    with served[1].write.begin() as session:
        accounts.set_password(session, "leaver", "quite another password")
    assert refused(client.get("/things")) == (401, "session")
    log_in(client, name="leaver", password="quite another password")
    with served[1].write.begin() as session:
        accounts.remove(session, "leaver")
    assert refused(client.get("/things")) == (401, "session")


def test_the_first_account_has_the_password_of_the_file(tmp_path):
    """The data outlives the folder in which secrets are made: a fresh clone beside old volumes has another file."""
    secret = tmp_path / "secret"
    env = {"SPIRA_DATABASE": f"sqlite:///{tmp_path}/a.db", "SPIRA_FIRST_PASSWORD": str(secret)}
    for content in ("the first of all passwords\n", "another password, later\n"):
        secret.write_text(content)
        access = attach(FastAPI(), read(env))
        with access.read() as session:
            assert accounts.checked(session, "demo", content.strip()).roles == list(Role)
    with access.read() as session:
        assert accounts.checked(session, "demo", "the first of all passwords") is None
    with access.write.begin() as session:
        accounts.add(session, "ana", ["engineer"], "a password of her own")
        accounts.remove(session, "demo")
    with attach(FastAPI(), read(env)).read() as session:
        assert [account.name for account in session.query(accounts.Account)] == ["ana"]  # it does not come back


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"SPIRA_DATABASE": "no address"}, "SPIRA_DATABASE: no such address"),
        ({"SPIRA_DATABASE": "mysql://u:hush-hush@h/d"}, "SPIRA_DATABASE: mysql is not supported"),
        ({"SPIRA_DATABASE_PASSWORD_FILE": "/nowhere"}, "/nowhere: cannot be read"),
        ({"SPIRA_INSECURE_COOKIES": "perhaps"}, "SPIRA_INSECURE_COOKIES=perhaps: "),
    ],
)
def test_a_wrong_setting_is_named(env, said):
    with pytest.raises(Mistake, match=said) as caught:
        read(env).url()
    assert "hush-hush" not in str(caught.value)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPIRA_DATABASE", f"sqlite:///{tmp_path}/app.db")
    monkeypatch.setenv("SPIRA_TRAIL", str(tmp_path))

    def run(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "short").write_text("short")
    assert run("migrate") == (0, "", "")
    assert run("accounts", "add", "ana", "--role", "clinician", "--password-file", tmp_path / "password")[0] == 0
    code, key, said = run("accounts", "add", "ward-7", "--role", "collector", "--role", "clinician", "--key")
    assert (code, key[:6], "collector, clinician" in said) == (0, "spira_", True)
    again = run("accounts", "add", "ana", "--role", "clinician", "--key")
    assert (again[0], again[1], "there is such an account" in again[2]) == (2, "", True)
    short = run("accounts", "password", "ana", "--password-file", tmp_path / "short")
    assert (short[0], "12 to 256 characters" in short[2]) == (2, True)
    assert run("accounts", "add", "Ana", "--role", "clinician", "--key")[0] == 2
    listed = run("accounts", "list")[1].splitlines()
    assert [line.split()[:3] for line in listed] == [
        ["ana", "password", "clinician"],
        ["ward-7", "key", "collector,clinician"],
    ]
    assert run("accounts", "remove", "ana") == (0, "", "")
    gone = run("accounts", "remove", "ana")
    assert (gone[0], gone[2]) == (2, "ana: there is no such account; `accounts list` shows them\n")
    trail = (tmp_path / "trail.jsonl").read_text()
    assert [json.loads(line)["what"] for line in trail.splitlines()] == ["account_add", "account_add", "account_remove"]
    assert key.strip() not in trail


def test_nothing_heavy_is_imported():
    code = "import sys, access.web, access.__main__; print({'torch', 'mlflow', 'airflow', 'limits'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_sessions_of_one_engine_read_and_write(served):
    make = sessions(served[1].engine)
    with make() as session:
        assert session.get(accounts.Account, "nurse").roles == ["clinician"]
