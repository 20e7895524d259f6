"""The worker processes of a TorchServe, for whoever kills them or weighs them."""

from pathlib import Path


def workers(home: Path) -> set[int]:
    """The Python processes of the TorchServe that lives in `home`."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and b"model_service_worker" in line and str(home).encode() in line:
            found.add(int(entry.name))
    return found
