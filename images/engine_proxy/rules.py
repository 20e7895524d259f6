"""What the body of a container's creation may say: pure functions, and closed to whatever they do not know.

A key of the tables `BODY` and `HOST` has a check of its own. Any other key, known to the engine or not, must be empty,
and is not handed on: for some (`MaskedPaths: []`) empty is not the default.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from policy import Policy, is_place

MAX_PIDS = 4096
MAX_SHM = 16 << 30  # what is really used of it counts towards Memory
MAX_ENV = 64 << 10  # characters
MAX_ID = (1 << 31) - 1  # of a user or a group
PURPOSE = ("spira.dag", "spira.run", "spira.task")
SCRATCH = re.compile(r"(/tmp|/var/tmp|/run)(/.+)?")
SCRATCH_OPTION = re.compile(r"rw|noexec|nosuid|nodev|size=[0-9]+[bkmgBKMG]?|mode=[01]?[0-7]{3}|[ug]id=[0-9]+")
KERNEL = re.compile(r"/(proc|sys|dev)(/.*)?")

Check = Callable[[Any, Policy], Iterable[str]]


def violations(body: Mapping[str, Any], policy: Policy) -> list[str]:
    """Why the container that `body` describes may not be made, each as one sentence; empty where it may."""
    host = body.get("HostConfig")
    if not isinstance(host, dict):
        return [*_checked(body, BODY, "", policy), "HostConfig must be an object"]
    return [*_checked(body, BODY, "", policy), *_checked(host, HOST, "HostConfig.", policy), *_no_more_swap(host)]


def kept(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of an accepted body the engine gets: the keys that were checked, where they say something."""
    host = {name: value for name, value in body["HostConfig"].items() if name in HOST and not _empty(value)}
    return {name: body[name] for name in BODY if not _empty(body.get(name))} | {"HostConfig": host}


def _checked(given: Mapping[str, Any], table: Mapping[str, Check], prefix: str, policy: Policy) -> Iterator[str]:
    for name, check in table.items():
        yield from (f"{prefix}{name} {reason}" for reason in check(given.get(name), policy))
    known = {name.casefold(): name for name in table}
    for name, value in given.items():
        if name in table:
            continue
        if name.casefold() in known:
            yield f"{prefix}{_shown(name)} must be spelt {known[name.casefold()]}"
        elif not _empty(value):
            yield f"{prefix}{_plain(name)} is not among what a step may set, so it must be empty"


def _empty(value: Any) -> bool:
    # Only the outermost level counts: {"/host": {}} says something.
    return value in (None, "", [], {}, 0)  # False is 0


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(name: str) -> str:
    return ascii(name)[1:-1][:80]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _anything(value: Any, policy: Policy) -> Iterator[str]:
    yield from ()


def _flag(value: Any, policy: Policy) -> Iterator[str]:
    if value is not None and not isinstance(value, bool):
        yield "must be true or false"


def _one_of(*allowed: Any) -> Check:
    """The value must be one of `allowed`, of the same type: 1 is not true."""

    def check(value: Any, policy: Policy) -> Iterator[str]:
        if not any(type(value) is type(one) and value == one for one in allowed):
            yield f"is {_shown(value)}; allowed: {', '.join(map(json.dumps, allowed))}"

    return check


def _image(value: Any, policy: Policy) -> Iterator[str]:
    if not isinstance(value, str) or value not in policy.images:
        yield f"{_shown(value)} is not among the allowed ({_listed(policy.images)}; SPIRA_ALLOWED_IMAGES)"


def _user(value: Any, policy: Policy) -> Iterator[str]:
    # With no group given it may be root's.
    found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", value) if isinstance(value, str) else None
    if not found or not all(0 < int(number) <= MAX_ID for number in found.groups()):
        yield f"is {_shown(value)}; it must be a numeric user and group, neither of them 0, as in 10001:10001"


def _command(value: Any, policy: Policy) -> Iterator[str]:
    if value is not None and not _texts(value):
        yield "must be a list of words"


def _environment(value: Any, policy: Policy) -> Iterator[str]:
    """Reasons never show a value: it may be a secret."""
    if value is None:
        return
    if not _texts(value):
        yield "must be a list of NAME=value"
        return
    if sum(map(len, value)) > MAX_ENV:
        yield f"is longer than {MAX_ENV} characters"
    for number, item in enumerate(value):
        name, equals, _ = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"[{number}] is not NAME=value"
        elif name.upper().startswith("NVIDIA_") and not policy.gpu:
            # Where NVIDIA's is the engine's default runtime, NVIDIA_VISIBLE_DEVICES is a request for devices.
            yield f"[{number}] {name[:80]} asks for a GPU, which SPIRA_ALLOW_GPU does not allow"


def _labels(value: Any, policy: Policy) -> Iterator[str]:
    if not isinstance(value, dict):
        value = {}
    yield from (f"must name {name}" for name in PURPOSE if not value.get(name))
    for name, text in value.items():
        # Other programs act on labels of theirs: reverse proxies publish, updaters restart.
        if not name.startswith("spira.") or not isinstance(text, str):
            yield f"{_shown(name)} must begin with spira. and be a text"


def _folder(value: Any, policy: Policy) -> Iterator[str]:
    if not _empty(value) and not is_place(value):
        yield f"is {_shown(value)}; it must be an absolute path below /"


def _network(value: Any, policy: Policy) -> Iterator[str]:
    if not isinstance(value, str) or value not in policy.networks | {"none"}:
        allowed = f"{_listed(policy.networks)}; SPIRA_ALLOWED_NETWORKS"
        yield f"{_shown(value)} is neither none nor among the allowed ({allowed})"


def _no_restart(value: Any, policy: Policy) -> Iterator[str]:
    if not _empty(value) and value not in ({"Name": "no"}, {"Name": "no", "MaximumRetryCount": 0}):
        yield "must be none: Airflow decides about another try"


def _log(value: Any, policy: Policy) -> Iterator[str]:
    if _empty(value):
        return
    config = (value.get("Config") or {}) if isinstance(value, dict) else None
    if config is None or value.keys() - {"Type", "Config"} or value.get("Type") not in (None, "", "json-file"):
        yield "must be of the type json-file"
    elif not isinstance(config, dict) or config.keys() - {"max-size", "max-file"}:
        yield ".Config may set only max-size and max-file"


def _mounts(value: Any, policy: Policy) -> Iterator[str]:
    if _empty(value):
        return
    if not isinstance(value, list):
        yield "must be a list"
        return
    for number, mount in enumerate(value):
        reasons = _mount(mount, policy) if isinstance(mount, dict) else ["must be an object"]
        yield from (f"[{number}] {reason}" for reason in reasons)


def _mount(mount: Mapping[str, Any], policy: Policy) -> Iterator[str]:
    kind, source, target = mount.get("Type"), mount.get("Source"), mount.get("Target")
    if not is_place(target) or KERNEL.fullmatch(str(target)):
        yield f"Target {_shown(target)} must be an absolute path below /, and none of the kernel's"
    # Options of a local driver can turn a volume into a mount of any folder of the host.
    for name in mount.keys() - {"Type", "Source", "Target", "ReadOnly"}:
        unused = _empty(mount[name]) and name in ("VolumeOptions", "BindOptions", "TmpfsOptions", "Consistency")
        if not unused and not (name == "TmpfsOptions" and kind == "tmpfs" and _tmpfs_options(mount[name])):
            yield f"{_plain(name)} must be empty"
    if mount.get("ReadOnly") not in (None, True, False) or _whole(mount.get("ReadOnly")):
        yield "ReadOnly must be true or false"
    if kind == "tmpfs":
        if not _empty(source):
            yield "Source must be empty for a tmpfs"
    elif kind not in ("volume", "bind"):
        yield f"Type {_shown(kind)} is not volume, bind or tmpfs"
    elif not isinstance(source, str) or source not in policy.volumes or (kind == "bind") != source.startswith("/"):
        yield f"Source {_shown(source)} of a {kind} is not allowed ({_listed(policy.volumes)}; SPIRA_ALLOWED_VOLUMES)"
    elif policy.volumes[source] and mount.get("ReadOnly") is not True:
        yield f"Source {source} may only be mounted ReadOnly"


def _tmpfs_options(value: Any) -> bool:
    limits = {"SizeBytes": 1 << 50, "Mode": 0o1777}
    return isinstance(value, dict) and all(_whole(v) and 0 <= v <= limits.get(name, -1) for name, v in value.items())


def _scratch(value: Any, policy: Policy) -> Iterator[str]:
    if _empty(value):
        return
    if not isinstance(value, dict):
        yield "must be an object"
        return
    for target, options in value.items():
        if not is_place(target) or not SCRATCH.fullmatch(target):
            yield f"{_shown(target)} is not within /tmp, /var/tmp or /run"
        for option in options.split(",") if isinstance(options, str) else [options]:
            if option != "" and not (isinstance(option, str) and SCRATCH_OPTION.fullmatch(option)):
                yield f"{_shown(target)} has the option {_shown(option)}, which is not allowed"


def _up_to(limit: Callable[[Policy], float], setting: str) -> Check:
    def check(value: Any, policy: Policy) -> Iterator[str]:
        if not _whole(value) or not 0 < value <= limit(policy):
            yield f"is {_shown(value)}; it must be above 0 and at most {limit(policy):.0f}{setting}"

    return check


def _shm(value: Any, policy: Policy) -> Iterator[str]:
    if not _empty(value):
        yield from _up_to(lambda policy: MAX_SHM, "")(value, policy)


def _no_more_swap(host: Mapping[str, Any]) -> Iterator[str]:
    swap = host.get("MemorySwap")
    if not _empty(swap) and not (_whole(swap) and swap == host.get("Memory")):
        yield f"HostConfig.MemorySwap is {_shown(swap)}; it must be empty or what Memory is"


def _devices(value: Any, policy: Policy) -> Iterator[str]:
    if _empty(value):
        return
    if not policy.gpu:
        yield "asks for a GPU, which SPIRA_ALLOW_GPU does not allow"
        return
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        yield "must be a list of one request"
        return
    (wanted,) = value
    for name in wanted.keys() - {"Driver", "Count", "DeviceIDs", "Capabilities"}:
        if name != "Options" or not _empty(wanted[name]):
            yield f"[0].{_plain(name)} must be empty"
    if wanted.get("Driver") not in (None, "", "nvidia"):
        yield "[0].Driver must be nvidia"
    if wanted.get("Capabilities") != [["gpu"]]:
        yield '[0].Capabilities must be [["gpu"]]'
    if not _empty(count := wanted.get("Count")) and not (_whole(count) and -1 <= count <= 64):
        yield "[0].Count must be how many, or -1 for all"
    ids = wanted.get("DeviceIDs")
    if not _empty(ids) and not (_texts(ids) and all(re.fullmatch(r"[A-Za-z0-9:_-]{1,64}", one) for one in ids)):
        yield "[0].DeviceIDs must be numbers or ids of GPUs"


BODY: dict[str, Check] = {
    "Image": _image,
    "User": _user,
    "Cmd": _command,
    "Env": _environment,
    "Labels": _labels,
    "WorkingDir": _folder,
    "AttachStdout": _flag,
    "AttachStderr": _flag,
    "HostConfig": _anything,
}
HOST: dict[str, Check] = {
    "CapDrop": _one_of(["ALL"]),
    "SecurityOpt": _one_of(["no-new-privileges"], ["no-new-privileges:true"]),
    "ReadonlyRootfs": _one_of(True),
    "NetworkMode": _network,
    "IpcMode": _one_of(None, "", "private", "none"),
    "CgroupnsMode": _one_of(None, "", "private"),
    "RestartPolicy": _no_restart,
    "LogConfig": _log,
    "Mounts": _mounts,
    "Tmpfs": _scratch,
    "Memory": _up_to(lambda policy: policy.memory, " (SPIRA_MAX_MEMORY)"),
    "MemorySwap": _anything,  # against Memory: _no_more_swap
    "ShmSize": _shm,
    "NanoCpus": _up_to(lambda policy: policy.cpus * 1e9, " (SPIRA_MAX_CPUS)"),
    "CpuShares": _one_of(None, 0, 1024),  # the engine's own default, which Airflow's operator sends
    "PidsLimit": _up_to(lambda policy: MAX_PIDS, ""),
    "DeviceRequests": _devices,
    "Init": _flag,
    "MaskedPaths": _one_of(None),
    "ReadonlyPaths": _one_of(None),
}
