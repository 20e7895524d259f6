"""What images/wheels.py hands to the build of an environment. With wheels made here; no engine, no network."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "images"))
import wheels
from command import Refusal, told


def make(folder: Path, name: str, version: str, *needs: str, files: dict[str, str] | None = None) -> Path:
    """A wheel that pip takes, with nothing in it but what is said here."""
    folder.mkdir(exist_ok=True)
    file, about = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {need}\n" for need in needs
    )
    inside = {f"{about}/METADATA": metadata, f"{about}/RECORD": ""} | (files or {})
    inside[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in inside.items():
            archive.writestr(path, text)
    return file


def make_lock(path: Path, *files: Path) -> Path:
    """A lock of these wheels, as uv writes it."""
    lines = []
    for file in files:
        name, version = file.name.split("-")[:2]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{digest}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def handed(tmp_path, monkeypatch):
    """A folder of wheels handed in, and nothing else to take any from."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("OFFLINE", "1")
    monkeypatch.setenv("WHEELS", str(tmp_path / "handed"))
    (tmp_path / "handed").mkdir()
    return tmp_path / "handed"


def test_a_lock_becomes_a_context_and_asks_nobody_twice(tmp_path, handed, monkeypatch):
    lock = make_lock(tmp_path / "a.lock", make(handed, "one_part", "1.0"), make(handed, "two", "2.0"))
    context = tmp_path / "context"
    wheels.fetch(lock, context)
    names = {file.name for file in (context / "locked").iterdir()}
    assert names == {"one_part-1.0-py3-none-any.whl", "two-2.0-py3-none-any.whl"}
    assert (context / "requirements.lock").read_text() == lock.read_text()
    monkeypatch.setattr(wheels, "_pip", lambda *_: pytest.fail("asked again"))
    wheels.fetch(lock, context)


def test_wheels_of_an_earlier_lock_leave(tmp_path, handed):
    old, new = make(handed, "one", "1.0"), make(handed, "one", "1.1")
    wheels.fetch(make_lock(tmp_path / "a.lock", old), tmp_path / "context")
    wheels.fetch(make_lock(tmp_path / "a.lock", new), tmp_path / "context")
    assert [file.name for file in (tmp_path / "context/locked").iterdir()] == [new.name]


def test_a_wheel_that_is_not_the_locked_one_is_refused(tmp_path, handed):
    lock = make_lock(tmp_path / "a.lock", make(handed, "one", "1.0"))
    make(handed, "one", "1.0", files={"one.py": "import os"})
    with pytest.raises(Refusal, match=r"(?s)requirements/a.lock: a wheel cannot be had.*MATCH THE HASHES.*WHEELS=DIR"):
        wheels.fetch(lock, tmp_path / "context")
    assert not (tmp_path / "context/requirements.lock").exists()


def test_a_folder_of_wheels_that_is_not_there_is_refused(tmp_path, handed, monkeypatch):
    lock = make_lock(tmp_path / "a.lock", make(handed, "one", "1.0"))
    monkeypatch.setenv("WHEELS", "/nowhere/wheels")
    with pytest.raises(Refusal, match="WHEELS=/nowhere/wheels: no such folder"):
        wheels.fetch(lock, tmp_path / "context")


def torch(folder: Path, local: str, cuda: str, *needs: str) -> None:
    version = f"from typing import Optional\n__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\nhip = None\n"
    make(folder, "torch", f"2.13.0+{local}", *needs, files={"torch/version.py": version})


@pytest.mark.parametrize(
    ("variant", "cuda", "said"),
    [("cuda", "None", "is built for the CPU"), ("cpu", "'13.0'", "is built for CUDA 13.0")],
)
def test_the_other_build_of_torch_is_refused(tmp_path, handed, variant, cuda, said):
    lock = make_lock(tmp_path / "a.lock", make(handed, "sympy", "1.13"))
    (tmp_path / "torch.txt").write_text("torch==2.13.0\n")
    torch(handed, "x", cuda)
    wheels.fetch(lock, tmp_path / "context")
    with pytest.raises(Refusal, match=f"VARIANT={variant}, but pip found torch-2.13.0.*{said}.*PIP_INDEX_URL"):
        wheels.fetch_torch(tmp_path / "torch.txt", lock, tmp_path / "context", variant)


def test_a_cuda_build_brings_its_libraries_and_keeps_to_the_lock(tmp_path, handed):
    lock = make_lock(tmp_path / "a.lock", make(handed, "sympy", "1.13"))
    make(handed, "sympy", "1.14")
    make(handed, "nvidia_some", "13.1")
    (tmp_path / "torch.txt").write_text("torch==2.13.0\n")
    torch(handed, "cu130", "'13.0'", "sympy>=1.13", "nvidia-some==13.1; platform_system == 'Linux'")
    wheels.fetch(lock, tmp_path / "context")
    wheels.fetch_torch(tmp_path / "torch.txt", lock, tmp_path / "context", "cuda")
    assert sorted(file.name.rsplit("-", 3)[0] for file in (tmp_path / "context/torch").iterdir()) == [
        "nvidia_some-13.1",
        "sympy-1.13",
        "torch-2.13.0+cu130",
    ]


def test_a_full_disk_is_named():
    message = told("spira_train: failed", "Step 3/9\nwrite /var/lib/x: no space left on device")
    assert "the disk is full" in message
    assert "docker system df" in message
