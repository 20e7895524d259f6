"""Runs inside the base image's build: trust the authorities of ca.pem that the system does not know yet."""

import re
import subprocess
from pathlib import Path

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----")
SYSTEM = Path("/etc/ssl/certs/ca-certificates.crt")
ADDED = Path("/usr/local/share/ca-certificates")


def bodies(file: Path) -> dict[str, str]:
    """The certificates of a bundle by their bare content, however their lines are broken."""
    found = CERTIFICATE.findall(file.read_text(errors="replace"))
    return {"".join(text.split("-----")[2].split()): text for text in found}


handed = bodies(Path(__file__).with_name("ca.pem"))
new = [text for body, text in handed.items() if body not in bodies(SYSTEM)]
for number, text in enumerate(new):
    (ADDED / f"handed-in-{number:03}.crt").write_text(text + "\n")
if new:
    subprocess.run(["update-ca-certificates"], check=True)
print(f"{len(handed)} authorities handed in, {len(new)} of them new")
