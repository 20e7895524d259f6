"""JSON that can be read in one way only."""

import json
from typing import Any


def read(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; raises `ValueError` on anything that another reader could read differently.

    The engine takes keys in any case, and the last of two equal ones; so both are refused, at every depth.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("JSON is not in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not one JSON object: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise ValueError("this JSON is not an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, str] = {}
    for name, _ in pairs:
        if (folded := name.casefold()) in seen:
            raise ValueError(f"JSON has a key twice: {ascii(seen[folded])[:80]} and {ascii(name)[:80]}")
        seen[folded] = name
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
