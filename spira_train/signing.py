"""Whose archive it is: a pair of keys, the signature of a folder, and its verification.

The signature is a Sigstore bundle over every file of the folder by its SHA-256 (OpenSSF model signing), made with an
elliptic curve key of one's own: no certificate authority, no log on the internet. Its own command line checks it too.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from spira_train.outcome import BadInput, Refused
from spira_train.store import REPORT, alone, disk_errors, scratch, write_atomic

SIGNATURE, PRIVATE, PUBLIC = "model.sig", "signing.key", "signing.pub"
# Not signed: the signature itself, and the report, which its step writes after all else and which holds a duration.
UNSIGNED = (SIGNATURE, REPORT)
# How model_signing tells of a difference -> how we do.
_DIFFERENCES = {
    r"Hash mismatch for \\?'([^'\\]+)": "was changed",
    r"Missing files in model \\?'[^']*': ([^'\"\\]+)": "is missing",
    r"Extra files found in model \\?'[^']*': ([^'\"\\]+)": "is not among them",
}


def make_keys(folder: Path, public: Path | None = None) -> str:
    """A new pair: `signing.key` in `folder`, `signing.pub` in `public` (or beside it); returns the fingerprint.

    What is there is never touched; a lost public key is made again from the private one. Raises `BadInput` where the
    public key that is there belongs to another pair.
    """
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret, shown = folder / PRIVATE, (public or folder) / PUBLIC
        with alone(folder):
            if not secret.exists():
                plain = forms.NoEncryption()
                made = ec.generate_private_key(ec.SECP256R1())
                _secretly(secret, made.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, plain))
            pem = _public(_private_key(secret), secret)
            if not shown.exists():
                write_atomic(shown, pem)
            elif shown.read_bytes() != pem:
                raise BadInput(f"{shown}: belongs to another pair than {secret}; delete the one that is not yours")
    return _digest(pem)


def fingerprint(key: Path) -> str:
    """SHA-256 of the public key that belongs to the private key in `key`; raises `BadInput` where it cannot sign."""
    return _digest(_public(_private_key(key), key))


def sign(folder: Path, key: Path) -> None:
    """Write `model.sig` over all other files in `folder`. key: the private key's file."""
    from model_signing import signing

    with disk_errors(str(folder)):
        signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_hashing()).sign(
            folder, folder / SIGNATURE
        )


def verify(folder: Path, key: Path) -> str:
    """The fingerprint of the public key in `key`, whose private half signed just these files of `folder`.

    Raises `Refused` where a file was changed, is missing or is one too many, where the signature is of another key, is
    damaged or is not there; `BadInput` where `key` is no public key.
    """
    from model_signing import verifying

    ours, bundle = _digest(_public(_public_key(key), key)), folder / SIGNATURE
    if not bundle.is_file():
        raise Refused(f"{bundle}: missing, so nobody vouches for this archive; package it again with SPIRA_SIGNING_KEY")
    if (theirs := _hint(bundle)) != ours:
        raise Refused(
            f"{bundle}: signed with another key ({theirs[:12]}) than {key} ({ours[:12]}) belongs to; "
            "package it again, or verify with the right key (SPIRA_VERIFY_KEY)"
        )
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_hashing()).verify(
            folder, bundle
        )
    except Exception as error:  # noqa: BLE001 - whatever the library stumbles over in a foreign file is a refusal
        raise Refused(f"{folder}: is not what was signed: {_said(error)}; run `spira-train package` again") from None
    return ours


def stands(folder: Path, key: Path) -> bool:
    """Whether `folder` still is what the private key in `key` signed."""
    with scratch("spira-key-") as place:
        write_atomic(place / PUBLIC, _public(_private_key(key), key))
        try:
            verify(folder, place / PUBLIC)
        except Refused:
            return False
    return True


def _said(error: Exception) -> str:
    """Which files differ, and how, out of the library's message; the whole of it where it says something else."""
    found = ((word, name) for pattern, word in _DIFFERENCES.items() for name in re.findall(pattern, str(error)))
    return "; ".join(f"{name} {word}" for word, name in found) or str(error) or "the signature does not fit"


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _hint(bundle: Path) -> str:
    """Which key the signature says that it is of; whether that is true is for the signature to show."""
    try:
        return str(json.loads(bundle.read_text())["verificationMaterial"]["publicKey"]["hint"])
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{bundle}: damaged, or no signature; run `spira-train package` again") from None


def _private_key(file: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(file, "SPIRA_SIGNING_KEY")
    if file.stat().st_mode & 0o077:
        raise BadInput(f"{file}: others may read this private key; `chmod 600` it, or make a new one")
    try:
        return load_pem_private_key(content, None)
    except (ValueError, TypeError):
        raise BadInput(f"{file}: no private key in PEM without a password; `spira-train keys` makes one") from None


def _public_key(file: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return load_pem_public_key(_read(file, "SPIRA_VERIFY_KEY"))
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"{file}: no public key in PEM; `spira-train keys` makes a pair") from None


def _public(key: Any, file: Path) -> bytes:
    """The public half of a key as PEM; raises `BadInput` unless it is of the curve P-256."""
    from cryptography.hazmat.primitives import serialization as forms

    public = key.public_key() if hasattr(key, "public_key") else key
    if getattr(getattr(public, "curve", None), "name", "") != "secp256r1":
        raise BadInput(f"{file}: must be a key of the elliptic curve P-256; `spira-train keys` makes a pair")
    return bytes(public.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))


def _digest(pem: bytes) -> str:
    return hashlib.sha256(pem).hexdigest()


def _read(file: Path, variable: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{file} ({variable}): not found; `spira-train keys FOLDER` makes a pair of keys") from None
    except OSError as error:
        raise BadInput(f"{file} ({variable}): not readable ({error.strerror})") from None


def _secretly(file: Path, content: bytes) -> None:
    staging = file.with_suffix(".partial")
    staging.unlink(missing_ok=True)
    with os.fdopen(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    staging.replace(file)
