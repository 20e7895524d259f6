"""Who a recording is of, as 16 hex digits: a keyed digest, which nobody undoes by trying names or hospital numbers."""

import hashlib
import hmac
import os
import secrets
import unicodedata
from pathlib import Path

from serve.gateway.settings import Mistake

_BYTES = 32


def pseudonym(key: bytes, subject: str) -> str:
    """HMAC-SHA256 of a subject, 16 hex digits; case, spaces around it and the spelling of accents do not matter.

    >>> pseudonym(b"k", "RGH 12") == pseudonym(b"k", " rgh  12 ")
    True
    """
    plain = " ".join(unicodedata.normalize("NFKC", subject).casefold().split())
    return hmac.new(key, plain.encode(), hashlib.sha256).hexdigest()[:16]


def read_key(file: Path) -> bytes:
    """The key in `file`, which is made at the first start, for its owner's eyes only. Raises `Mistake`."""
    try:
        if not file.exists():
            _make(file)
        content = bytes.fromhex(file.read_text().strip())
    except OSError as error:
        raise Mistake(
            f"{file}: cannot be read or made ({error.strerror}); SPIRA_PSEUDONYM_KEY says where it is"
        ) from None
    except ValueError:
        content = b""
    if len(content) < _BYTES:
        raise Mistake(f"{file}: not a key; it should hold {2 * _BYTES} hex digits. Without the old key nobody is known")
    return content


def _make(file: Path) -> None:
    """Two services may start at once: whoever links its key first gives it to both."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(6)}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_hex(_BYTES).encode() + b"\n")
        os.fsync(handle)
        os.link(partial, file)
    except FileExistsError:
        pass
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)
