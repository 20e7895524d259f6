"""The proxy before the real engine: a step's container lives, and nothing else is to be had."""

import io
import os
import re
import tarfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from shutil import which

import docker
import pytest
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import DriverConfig, LogConfig, Mount
from engine_proxy_process import IMAGE, KEYS, LAKE, MARK, proxy

pytestmark = pytest.mark.docker
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
TMP = "/tmp"  # noqa: S108 - the container's own
LABELS = {"spira.dag": MARK, "spira.run": "manual__1", "spira.task": "train"}
MIB = 1 << 20
ROOT = DriverConfig("local", {"type": "none", "o": "bind", "device": "/"})  # a volume that is the whole host


@pytest.fixture(scope="module")
def engine():
    """The real engine, with an image that is busybox and nothing else; what tests make on it is removed after them."""
    try:
        client = docker.APIClient(base_url=ENGINE, version="auto")
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers at {ENGINE}: {error}")
    busybox = which("busybox")
    if not busybox or b"/ld-linux" in Path(busybox).read_bytes():
        pytest.skip("no static busybox: install Debian's package busybox-static")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "tmp", "lake", "keys"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for name in ("sh", "sleep", "id", "touch", "cat", "grep"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    client.import_image_from_data(layer.getvalue(), repository=MARK, tag="latest")
    yield client
    for container in client.containers(all=True, filters={"ancestor": IMAGE}):
        client.remove_container(container["Id"], force=True)
    for volume in (LAKE, KEYS):
        with suppress(NotFound):
            client.remove_volume(volume)
    client.remove_image(IMAGE, force=True)


@pytest.fixture(scope="module")
def through(engine, tmp_path_factory):
    """A proxy before the real engine."""
    folder = tmp_path_factory.mktemp("proxy")
    folder.chmod(0o755)  # it is bound into a container, whose user reads it
    with proxy(folder, ENGINE.removeprefix("unix://")) as running:
        yield running


@pytest.fixture(scope="module")
def foreign(engine):
    """The id of a running container that is no step's."""
    made = engine.create_container(IMAGE, ["sleep", "600"], host_config=engine.create_host_config(network_mode="none"))
    engine.start(made["Id"])
    yield made["Id"]
    assert engine.inspect_container(made["Id"])["State"]["Running"]
    engine.remove_container(made["Id"], force=True)


def create(client: docker.APIClient, script: str = "sleep 600", *, image: str = IMAGE, **host) -> str:
    """A step's container as the operator makes it; host: changed arguments of its host configuration."""
    limits = {
        "mounts": [Mount("/lake", LAKE, "volume"), Mount("/keys", KEYS, "volume", read_only=True)],
        "network_mode": "none",
        "tmpfs": {TMP: "rw,noexec,nosuid,nodev,size=16m,mode=1777"},
        "shm_size": 16 * MIB,
        "mem_limit": "64m",
        "memswap_limit": "64m",
        "nano_cpus": 10**9,
        "pids_limit": 64,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "device_requests": None,
        "init": True,
        "log_config": LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
    }
    made = client.create_container(
        image=image,
        command=["sh", "-c", script],
        environment={"GREETING": "hush-hush"},
        user="10001:10001",
        labels=LABELS,
        host_config=client.create_host_config(**limits | host),
    )
    return made["Id"]


def test_the_whole_life_of_a_container(through):
    client = through.client
    assert client.ping()
    assert client.inspect_image(IMAGE)["RepoTags"] == [IMAGE]
    bound = Mount("/bound", str(through.log.parent), "bind")
    mounts = [Mount("/lake", LAKE, "volume"), Mount("/keys", KEYS, "volume", read_only=True), bound]
    script = """
        echo first; sleep 2
        id -u; id -g; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
        touch /lake/a /tmp/a || exit 1
        touch /a && exit 2; touch /keys/a && exit 3; cat /bound/*.log >/dev/null || exit 4
        echo $GREETING; exit 7
    """
    made = create(client, script, mounts=mounts)
    client.start(made)
    start, lines, times = time.monotonic(), b"", []
    # stdout alone: the engine reads the two streams on their own, and either may come first
    for chunk in client.logs(made, stdout=True, stderr=False, stream=True, follow=True):
        lines += chunk
        times.append(time.monotonic() - start)
    assert times[0] < 1.5 < times[-1], "the log came at the end, not as it was written"
    words = lines.decode().split()
    assert words[:3] == ["first", "10001", "10001"]
    assert words[-1] == "hush-hush"
    assert words[3:9] == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert client.wait(made)["StatusCode"] == 7
    found = client.inspect_container(made)
    assert found["State"]["ExitCode"] == 7
    assert found["Config"]["Labels"] == LABELS
    host = found["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"], host["Init"]) == (64 * MIB, 10**9, 64, True)
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
    client.remove_container(made, force=True)
    with pytest.raises(NotFound):
        client.inspect_container(made)


def test_an_allowed_image_by_its_id(engine, through):
    made = create(through.client, image=engine.inspect_image(IMAGE)["Id"])
    through.client.remove_container(made, force=True)
    with pytest.raises(APIError, match="is not among the allowed"):
        create(through.client, image="sha256:" + 64 * "0")
    with pytest.raises(APIError, match="image other is not among the allowed") as refused:
        through.client.inspect_image("other")
    assert refused.value.response.status_code == 403


def test_an_allowed_image_that_is_missing(engine, tmp_path):
    with (
        proxy(tmp_path, ENGINE.removeprefix("unix://"), SPIRA_ALLOWED_IMAGES="spira_nowhere:1") as running,
        pytest.raises(ImageNotFound, match="No such image"),
    ):
        running.client.inspect_image("spira_nowhere:1")


def test_stop_and_kill(through):
    client = through.client
    made = create(client, "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    client.start(made)
    waited = []
    waiting = threading.Thread(target=lambda: waited.append(client.wait(made)["StatusCode"]))
    waiting.start()
    client.stop(made, timeout=10)
    waiting.join(20)
    assert waited == [3]
    client.start(made)
    client.kill(made, signal="SIGKILL")
    assert client.wait(made)["StatusCode"] == 137
    client.remove_container(made, force=True)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"privileged": True}, "HostConfig.Privileged is not among what a step may set"),
        ({"cap_add": ["SYS_ADMIN"]}, "HostConfig.CapAdd"),
        ({"binds": ["/:/host"]}, "HostConfig.Binds"),
        ({"mounts": [Mount("/host", "/", "bind")]}, "Source '/' of a bind is not allowed"),
        (
            {"mounts": [Mount("/s", "/var/run/docker.sock", "bind", read_only=True)]},
            "docker.sock' of a bind is not all",
        ),
        ({"mounts": [Mount("/keys", KEYS, "volume")]}, f"Source {KEYS} may only be mounted ReadOnly"),
        ({"mounts": [Mount("/host", LAKE, "volume", driver_config=ROOT)]}, "VolumeOptions must be empty"),
        ({"network_mode": "host"}, "HostConfig.NetworkMode 'host' is neither none nor among the allowed"),
        ({"network_mode": None}, "HostConfig.NetworkMode 'default' is neither"),
        ({"pid_mode": "host"}, "HostConfig.PidMode"),
        ({"read_only": False}, "HostConfig.ReadonlyRootfs"),
        ({"security_opt": ["seccomp=unconfined"]}, "HostConfig.SecurityOpt"),
        ({"mem_limit": "129m", "memswap_limit": "129m"}, "SPIRA_MAX_MEMORY"),
        ({"nano_cpus": 2 * 10**9}, "SPIRA_MAX_CPUS"),
        ({"devices": ["/dev/kmsg"]}, "HostConfig.Devices"),
    ],
)
def test_no_other_container_is_made(engine, through, host, reason):
    before = len(engine.containers(all=True, filters={"ancestor": IMAGE}))
    with pytest.raises(APIError, match="engine proxy: ") as refused:
        create(through.client, **host)
    assert refused.value.response.status_code == 403
    assert reason in str(refused.value)
    assert len(engine.containers(all=True, filters={"ancestor": IMAGE})) == before


def test_containers_of_others_are_not_there(engine, through, foreign):
    client, made = through.client, create(through.client)
    for hide in (foreign, foreign[:12], engine.inspect_container(foreign)["Name"].lstrip("/")):
        for deed in (
            lambda who: client.inspect_container(who),
            lambda who: client.logs(who),
            lambda who: client.start(who),
            lambda who: client.wait(who),
            lambda who: client.stop(who, timeout=0),
            lambda who: client.kill(who),
            lambda who: client.remove_container(who, force=True),
        ):
            with pytest.raises(NotFound, match=f"no container {hide} that is a step's"):
                deed(hide)
    with pytest.raises(NotFound, match=r"no container nobody that is a step's"):
        client.inspect_container("nobody")
    for filters in (None, {"status": ["running", "created"]}, {"label": ["spira.task"]}, {"id": [foreign, made]}):
        found = {one["Id"] for one in client.containers(all=True, filters=filters)}
        assert made in found
        assert foreign not in found
    assert foreign in {one["Id"] for one in engine.containers()}
    client.remove_container(made, force=True)


REQUESTS = """
    POST /containers/{id}/exec          POST /exec/{id}/start             POST /containers/{id}/attach
    GET /containers/{id}/attach/ws      GET /containers/{id}/archive      PUT /containers/{id}/archive
    POST /containers/{id}/update        POST /containers/{id}/rename      POST /containers/{id}/resize
    POST /containers/{id}/restart       POST /containers/{id}/pause       GET /containers/{id}/export
    GET /containers/{id}/stats          GET /containers/{id}/top          GET /containers/{id}/changes
    POST /containers/prune              POST /commit                      POST /build
    GET /images/json                    POST /images/create               POST /images/load
    POST /images/{id}/tag               DELETE /images/{id}               GET /images/get
    GET /volumes                        POST /volumes/create              DELETE /volumes/{id}
    GET /networks                       POST /networks/create             POST /networks/a/connect
    POST /swarm/init                    GET /plugins                      POST /plugins/pull
    POST /secrets/create                POST /services/create             POST /session
    GET /events                         GET /info                         GET /system/df
    POST /auth                          POST /_ping                       CONNECT /_ping
    GET /v1.41/../containers/json       GET //containers/json             GET /containers/{id}%2Fjson
    GET /containers/%2e%2e/info         GET /v1.24/containers/json        GET /containers/{id}/./json
    GET /containers/{id}/../../info     GET http://engine/info            GET /containers/{id}//json
"""


@pytest.mark.parametrize(("method", "path"), re.findall(r"([A-Z]+) (\S+)", REQUESTS))
def test_nothing_else_reaches_the_engine(through, foreign, method, path):
    status, message = through.ask(method, path.format(id=foreign))
    assert (status, message.partition(":")[0]) == (403, "engine proxy")


def test_what_is_sent_beside_the_path(through):
    made = create(through.client)
    for headers in ({"Upgrade": "tcp", "Connection": "Upgrade"}, {"Connection": "Upgrade"}, {"Upgrade": "h2c"}):
        status, message = through.ask("POST", f"/containers/{made}/start", headers=headers)
        assert (status, "turned into a stream" in message) == (403, True)
    status, message = through.ask("POST", f"/containers/{made}/start", {"Privileged": True})
    assert (status, "takes no body" in message) == (403, True)
    for path in ("/containers/create?name=other", "/containers/create?platform=a"):
        assert "query parameter" in through.ask("POST", path, {})[1]
    assert "longer than 1048576" in through.ask("POST", "/containers/create", {"Image": "a" * (2 * MIB)})[1]
    assert "JSON has a key twice" in through.ask("POST", "/containers/create", b'{"User":"1:1","user":"0:0"}')[1]
    assert "JSON object" in through.ask("POST", "/containers/create", b'{"User":"1:1"}{"User":"0:0"}')[1]
    assert through.ask("POST", "/containers/create", b"[" * 5000)[0] == 403
    through.client.remove_container(made, force=True)


def test_the_log_names_what_was_refused_and_shows_no_secret(through):
    with pytest.raises(APIError):
        create(through.client, privileged=True)
    lines = through.log.read_text().splitlines()
    assert any("refused POST /v1." in line and "/containers/create: HostConfig.Privileged is" in line for line in lines)
    assert not any("hush" in line or "200 OK" in line or "Traceback" in line for line in lines)
