"""What an engine cannot do, tried on real ones: a disk without space, a socket that is not ours."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from test_container_step import DONE, run, shell_image

pytestmark = pytest.mark.docker


@pytest.fixture
def small(tmp_path):
    """(folder, address) of an engine of its own that keeps everything on a disk of 32 MiB."""
    if os.geteuid() or not shutil.which("dockerd"):
        pytest.skip("needs root and dockerd, to start an engine on a small disk")
    place = Path(tempfile.mkdtemp(prefix="spira-"))  # short: a socket's path has room for a hundred letters
    disk, url = place / "disk", f"unix://{place}/socket"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "spira-test", disk], check=True)
    words = ["--data-root", disk, "--exec-root", place / "exec", "--pidfile", place / "pid", "--host", url]
    words += ["--bridge", "none", "--iptables=false", "--ip-masq=false"]
    # in a network of its own: an engine without a bridge removes docker0, which is another's
    with (tmp_path / "dockerd.log").open("w") as log:
        process = subprocess.Popen(["unshare", "--net", "dockerd", *words], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "--host", url, "version"], capture_output=True, check=False).returncode:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "dockerd.log").read_text()
            time.sleep(0.1)
        yield disk, url
    finally:
        process.terminate()
        process.wait(timeout=60)
        subprocess.run(["umount", "--recursive", disk], check=True)
        shutil.rmtree(place)


@pytest.fixture
def step(load):
    """A step in a container of the engine at an address, as the DAG makes it."""
    load(SPIRA_RUNTIME="docker")
    from container_step import ContainerStep

    def step(url: str, image: str):
        settings = {"image": image, "docker_url": url, "user": "10001:10001", "mem_limit": "64m", "cpus": 0.5}
        settings |= {"network_mode": "none", "refusal_is_result": False, "tell": (), "stack": "test-trouble"}
        return ContainerStep(task_id="train", words=["run", DONE], **settings)

    return step


def test_a_full_disk_of_the_engine_is_told_and_worth_another_try(small, step):
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
    from docker import APIClient

    disk, url = small
    image = shell_image(APIClient(url, version="auto"))
    with pytest.raises(OSError, match="No space left"), (disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass
    with pytest.raises(AirflowException, match="has no space left on its disk; free some") as caught:
        run(step(url, image))
    assert not isinstance(caught.value, AirflowFailException)
    (disk / "ballast").unlink()
    assert run(step(url, image), attempt=2)["answer"] == 42


def test_a_socket_that_is_not_ours_is_told_and_not_tried_again(step):
    socket = Path("/var/run/docker.sock")
    if os.geteuid() or not socket.exists():
        pytest.skip(f"needs root, to become somebody else, and {socket}")
    task = step(f"unix://{socket}", "spira_nowhere")
    with pytest.raises(Exception, match="image spira_nowhere is not on"):  # whoever may, gets an answer
        run(task)
    said = as_nobody(lambda: run(step(f"unix://{socket}", "spira_nowhere")))
    assert said.startswith(f"AirflowFailException: {socket}: this user may not use the Docker engine; add it to")


def as_nobody(work) -> str:
    """What `work` raises in a process of the user `nobody`, with its type."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        said = "it raised nothing"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(theirs, said.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said
