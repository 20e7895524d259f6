"""Runs inside the build of an environment, once everything is installed: `finish.py cpu|cuda|none`.

Checks that torch is of the build that was asked for, mends torchaudio, leaves out what nothing runs, and compiles the
rest: containers run on a read-only root, where Python cannot keep bytecode.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
# A fifth of the environment: tests that packages bring along, headers, test programs.
UNUSED = [f"{name}/**/tests" for name in ("pandas", "pyarrow", "scipy", "sklearn", "sympy", "networkx", "matplotlib")]
UNUSED += [f"torch/{name}" for name in ("test", "include", "share", "bin/*[Tt]est*", "bin/protoc*", "lib/*_test.so")]
UNUSED += ["pyarrow/include", "pyarrow/src", "numpy/_core/include", "numpy/_core/lib"]


def main() -> None:
    """Finish the environment that this interpreter belongs to."""
    variant = sys.argv[1]
    if variant != "none":
        check_torch(variant)
        mend_torchaudio()
    for unused in [found for pattern in UNUSED for found in PACKAGES.glob(pattern)]:
        shutil.rmtree(unused) if unused.is_dir() else unused.unlink(missing_ok=True)
    # By content, not by time: copying from stage to stage must not make the bytecode stale.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(PACKAGES, quiet=2, workers=0, maxlevels=30, invalidation_mode=unchecked)


def check_torch(variant: str) -> None:
    """Refuse a CUDA build in a cpu image and the other way round."""
    import torch

    found = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if (variant == "cuda") != bool(torch.version.cuda):
        sys.exit(
            f"VARIANT={variant}, but the wheel of torch {torch.__version__} is a {found} build: "
            f"name an index that has the other (PIP_INDEX_URL), hand it in (WHEELS=DIR), or change VARIANT"
        )


def mend_torchaudio() -> None:
    """torchaudio's compiled parts load only with the torch build that they were linked to; it works without them."""
    trial = [sys.executable, "-c", "import torchaudio"]
    if subprocess.run(trial, stderr=subprocess.DEVNULL, check=False).returncode:
        for library in (PACKAGES / "torchaudio/lib").glob("*.so"):
            library.unlink()
        subprocess.run(trial, check=True)


if __name__ == "__main__":
    main()
