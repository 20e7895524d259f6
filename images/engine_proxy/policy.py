"""What this installation lets its steps have: images, volumes, networks and limits, from the environment."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

IMAGE = re.compile(r"sha256:[0-9a-f]{64}|(?!sha256:)[A-Za-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*)*")
VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
NETWORK = re.compile(r"(?!(?:host|default)$)[A-Za-z0-9][A-Za-z0-9_.-]*")
SIZE = re.compile(r"([0-9]{1,15})([bkmg]?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Policy:
    """Limits for every container of a step.

    images: names or ids, as a request must spell them. volumes: volume names and absolute host paths; true = only
    read-only. memory: bytes. cpus: cores.
    """

    images: frozenset[str]
    volumes: Mapping[str, bool]
    networks: frozenset[str]
    memory: int
    cpus: float
    gpu: bool = False

    @classmethod
    def read(cls, env: Mapping[str, str]) -> "Policy":
        """The policy in `SPIRA_ALLOWED_*`, `SPIRA_MAX_*` and `SPIRA_ALLOW_GPU`; raises `ValueError` naming a bad one.

        Images and limits must be given: a proxy that was told nothing lets nothing be created.
        """
        images = _named(env, "SPIRA_ALLOWED_IMAGES", IMAGE)
        if not images:
            raise ValueError("SPIRA_ALLOWED_IMAGES is empty; name the image that the steps run in")
        gpu = env.get("SPIRA_ALLOW_GPU", "false").strip().lower()
        if gpu not in ("true", "false"):
            raise ValueError(f"SPIRA_ALLOW_GPU is {gpu!r}; allowed: true, false")
        memory = size(env.get("SPIRA_MAX_MEMORY", "").strip())
        if not memory:
            raise ValueError("SPIRA_MAX_MEMORY must be the most memory a step may have: bytes, or as in 8g")
        return cls(
            images=images,
            volumes=_volumes(list(_items(env, "SPIRA_ALLOWED_VOLUMES"))),
            networks=_named(env, "SPIRA_ALLOWED_NETWORKS", NETWORK),
            memory=memory,
            cpus=_cpus(env.get("SPIRA_MAX_CPUS", "").strip()),
            gpu=gpu == "true",
        )


def size(text: str) -> int:
    """Bytes of a size as Docker writes it (`64m`, `8g`, plain bytes); 0 where it is none."""
    found = SIZE.fullmatch(text)
    return int(found[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()] if found else 0


def is_place(path: object) -> bool:
    """Whether `path` is an absolute path with nothing to normalise away, and not the root."""
    return isinstance(path, str) and bool(re.fullmatch(r"(/[^/\0]+)+", path)) and posixpath.normpath(path) == path


def _items(env: Mapping[str, str], name: str) -> Iterator[str]:
    yield from filter(None, (item.strip() for item in env.get(name, "").split(",")))


def _named(env: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> frozenset[str]:
    for item in (items := frozenset(_items(env, name))):
        if not pattern.fullmatch(item):
            raise ValueError(f"{name}: {item!r} cannot be allowed")
    return items


def _volumes(items: list[str]) -> dict[str, bool]:
    volumes = {item.removesuffix(":ro"): item.endswith(":ro") for item in items}
    if len(volumes) < len(items):
        raise ValueError("SPIRA_ALLOWED_VOLUMES names a volume twice")
    for name in volumes:
        if not (is_place(name) or VOLUME.fullmatch(name)):
            raise ValueError(f"SPIRA_ALLOWED_VOLUMES: {name!r} is neither a volume's name nor a plain path below /")
    # A step that may write into the outer folder could put a link to anywhere in the place of the inner one.
    for outer, inner in permutations(volumes, 2):
        if inner.startswith(f"{outer}/"):
            raise ValueError(f"SPIRA_ALLOWED_VOLUMES: {inner} lies within {outer}; name only one of them")
    return volumes


def _cpus(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?", text) or not float(text):
        raise ValueError("SPIRA_MAX_CPUS must be how many cores a step may have, as in 2 or 1.5")
    return float(text)
