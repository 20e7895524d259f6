"""The rules of the proxy before the engine: what a new container may be."""

import copy
import json
from dataclasses import replace

import pytest
import rules
import strict_json
from docker.types import ContainerConfig, DeviceRequest, HostConfig, LogConfig, Mount
from hypothesis import example, given
from hypothesis import strategies as st
from policy import Policy

MIB = 1 << 20
TMP = "/tmp"  # noqa: S108 - the container's own
POLICY = Policy(
    images=frozenset({"spira_train:latest"}),
    volumes={"spira-lake": False, "spira-keys": True, "/srv/lake": False, "/srv/noise": True},
    networks=frozenset({"spira-steps"}),
    memory=512 * MIB,
    cpus=2.0,
)
GPU = DeviceRequest(count=-1, capabilities=[["gpu"]])


def description(**host) -> dict:
    """A container as the SDK describes it for a step; host: changed arguments of its host configuration."""
    limits = {
        "mounts": [
            Mount("/lake", "spira-lake", "volume"),
            Mount("/keys", "spira-keys", "volume", read_only=True),
            Mount("/collected", "/srv/lake", "bind"),
        ],
        "network_mode": "spira-steps",
        "tmpfs": {TMP: "rw,noexec,nosuid,nodev,size=2g,mode=1777"},
        "shm_size": 64 * MIB,
        "mem_limit": "256m",
        "memswap_limit": "256m",
        "nano_cpus": 10**9,
        "pids_limit": 1024,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "log_config": LogConfig(type="json-file", config={"max-size": "64m", "max-file": "2"}),
    }
    body = ContainerConfig(
        "1.41",
        image="spira_train:latest",
        command=["spira-train", "train", "--run", "/runs/a b"],
        environment={"SPIRA_LAKE": "/lake", "MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        user="10001:10001",
        labels={"spira.dag": "spira_training", "spira.run": "manual__1", "spira.task": "train", "spira.try": "1"},
        host_config=HostConfig("1.41", **limits | host),
    )
    return strict_json.read(json.dumps(body).encode())  # what arrives


def changed(place: str, value) -> dict:
    """The good description with one thing changed: `HostConfig.Mounts.0.Source`."""
    body = description()
    *folders, name = place.split(".") if not place.startswith("Labels.") else place.split(".", 1)
    at = body
    for folder in folders:
        at = at[int(folder)] if isinstance(at, list) else at.setdefault(folder, {})
    at[name] = value
    return body


def test_what_the_sdk_sends_is_let_through():
    body = description()
    assert rules.violations(body, POLICY) == []
    kept = rules.kept(body)
    assert kept.keys() <= rules.BODY.keys()
    assert kept["HostConfig"] == {name: value for name, value in body["HostConfig"].items() if value}
    gpu = description(device_requests=[GPU])
    assert rules.violations(gpu, replace(POLICY, gpu=True)) == []
    assert "HostConfig.DeviceRequests" in rules.violations(gpu, POLICY)[0]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("HostConfig.NetworkMode", "none"),
        ("HostConfig.SecurityOpt", ["no-new-privileges:true"]),
        ("HostConfig.IpcMode", "private"),
        ("HostConfig.MemorySwap", 0),
        ("HostConfig.CpuShares", 1024),
        ("HostConfig.Privileged", False),
        ("HostConfig.RestartPolicy", {"Name": "no", "MaximumRetryCount": 0}),
        ("HostConfig.LogConfig", {"Type": None, "Config": {}}),
        ("HostConfig.Tmpfs", None),
        ("HostConfig.Mounts", [{"Type": "tmpfs", "Source": None, "Target": "/scratch", "ReadOnly": False}]),
        ("HostConfig.Mounts", [{"Type": "tmpfs", "Target": "/s", "TmpfsOptions": {"SizeBytes": 1024, "Mode": 0o700}}]),
        ("HostConfig.Mounts", [Mount("/noise", "/srv/noise", "bind", read_only=True)]),
        ("WorkingDir", "/app"),
        ("Env", None),
    ],
)
def test_harmless_changes_are_let_through(place, value):
    assert rules.violations(changed(place, value), POLICY) == []


REFUSED = [
    ("Image", "debian:latest", "Image 'debian:latest' is not among the allowed"),
    ("Image", None, "Image None is not among"),
    *(("User", user, "User is ") for user in (None, "", "0", "root", "0:0", "10001", "10001:0", "0:10001", 10001)),
    *(
        ("User", user, "User is ")
        for user in ("00:1", "1:root", "-1:1", "4294967296:1", "\u0661:\u0661", "1:1 ", "1:1:1")
    ),
    ("Cmd", "spira-train train", "Cmd must be a list of words"),
    ("Cmd", ["a\0b"], "Cmd must be a list of words"),
    ("Entrypoint", ["/bin/sh"], "Entrypoint is not among"),
    ("Env", {"A": "b"}, "Env must be a list"),
    ("Env", ["PATH"], "Env [0] is not NAME=value"),
    ("Env", ["=b"], "Env [0] is not NAME=value"),
    ("Env", ["A=" + "b" * (64 << 10)], "Env is longer"),
    ("Env", ["nvidia_visible_devices=all"], "Env [0] nvidia_visible_devices asks for a GPU"),
    ("Labels", None, "Labels must name spira.dag"),
    ("Labels.spira.run", "", "Labels must name spira.run"),
    ("Labels.traefik.enable", "true", "Labels 'traefik.enable' must begin with spira."),
    ("Labels.spira.try", 1, "Labels 'spira.try' must begin with spira. and be a text"),
    ("WorkingDir", "../host", "WorkingDir is '../host'"),
    ("Volumes", {"/host": {}}, "Volumes is not among"),
    ("ExposedPorts", {"80/tcp": {}}, "ExposedPorts is not among"),
    ("Healthcheck", {"Test": ["CMD", "true"]}, "Healthcheck is not among"),
    ("NetworkingConfig", {"EndpointsConfig": {"spira": {}}}, "NetworkingConfig is not among"),
    *((name, True, f"{name} is not among") for name in ("Tty", "OpenStdin", "AttachStdin", "StdinOnce")),
    ("Runtime", "nvidia", "Runtime is not among"),
    ("hostconfig", None, "'hostconfig' must be spelt HostConfig"),
    ("Ho\u017ftConfig", None, "must be spelt HostConfig"),  # a long s, which Go takes for an s
    ("user", "", "'user' must be spelt User"),
    ("HostConfig", None, "HostConfig must be an object"),
    ("HostConfig.mounts", [], "HostConfig.'mounts' must be spelt Mounts"),
    ("HostConfig.CapDrop", None, "HostConfig.CapDrop is None"),
    ("HostConfig.CapDrop", ["NET_RAW"], "HostConfig.CapDrop is ['NET_RAW']"),
    ("HostConfig.SecurityOpt", [], "HostConfig.SecurityOpt is []"),
    ("HostConfig.SecurityOpt", ["no-new-privileges", "seccomp=unconfined"], "HostConfig.SecurityOpt is"),
    ("HostConfig.SecurityOpt", ["no-new-privileges:false"], "HostConfig.SecurityOpt is"),
    ("HostConfig.ReadonlyRootfs", False, "HostConfig.ReadonlyRootfs is False"),
    ("HostConfig.ReadonlyRootfs", 1, "HostConfig.ReadonlyRootfs is 1"),
    *(
        ("HostConfig.NetworkMode", mode, "HostConfig.NetworkMode")
        for mode in (None, "", "host", "default", "bridge", "container:spira", "spira-control")
    ),
    *(("HostConfig.IpcMode", mode, "HostConfig.IpcMode is") for mode in ("host", "shareable", "container:a")),
    ("HostConfig.CgroupnsMode", "host", "HostConfig.CgroupnsMode is 'host'"),
    ("HostConfig.RestartPolicy", {"Name": "always"}, "HostConfig.RestartPolicy must be none"),
    ("HostConfig.LogConfig", {"Type": "syslog"}, "HostConfig.LogConfig must be of the type json-file"),
    ("HostConfig.LogConfig.Config", {"env": "A"}, "HostConfig.LogConfig .Config may set only"),
    ("HostConfig.Memory", 0, "HostConfig.Memory is 0"),
    ("HostConfig.MemorySwap", -1, "HostConfig.MemorySwap is -1"),
    ("HostConfig.MemorySwap", 512 * MIB, "HostConfig.MemorySwap is"),
    ("HostConfig.ShmSize", (16 << 30) + 1, "HostConfig.ShmSize is"),
    *(("HostConfig.NanoCpus", value, "HostConfig.NanoCpus is") for value in (None, 0, True, 2 * 10**9 + 1, 1e9, "1")),
    *(("HostConfig.PidsLimit", value, "HostConfig.PidsLimit is") for value in (None, 0, -1, 4097)),
    ("HostConfig.CpuShares", 262144, "HostConfig.CpuShares is 262144"),
    ("HostConfig.Init", "yes", "HostConfig.Init must be true or false"),
    ("HostConfig.MaskedPaths", [], "HostConfig.MaskedPaths is []"),
    ("HostConfig.ReadonlyPaths", [], "HostConfig.ReadonlyPaths is []"),
    ("HostConfig.DeviceRequests", [GPU], "HostConfig.DeviceRequests asks for a GPU"),
    ("HostConfig.Tmpfs", {"/app": ""}, "HostConfig.Tmpfs '/app' is not within"),
    ("HostConfig.Tmpfs", {f"{TMP}/../app": ""}, "is not within"),
    *(("HostConfig.Tmpfs", {TMP: f"rw,{o}"}, f"has the option '{o}'") for o in ("exec", "suid", "dev", "mode=4777")),
    ("HostConfig.Mounts.0.Source", "other", "HostConfig.Mounts [0] Source 'other' of a volume is not allowed"),
    ("HostConfig.Mounts.0.Source", "/srv/lake", "Source '/srv/lake' of a volume is not allowed"),
    ("HostConfig.Mounts.0.Source", "", "Source '' of a volume is not allowed"),
    ("HostConfig.Mounts.0.VolumeOptions", {"DriverConfig": {"Options": {"o": "bind"}}}, "VolumeOptions must be empty"),
    ("HostConfig.Mounts.0.VolumeOptions", {"NoCopy": True}, "VolumeOptions must be empty"),
    ("HostConfig.Mounts.0.volumeoptions", {}, "volumeoptions must be empty"),
    ("HostConfig.Mounts.0.Type", "npipe", "Type 'npipe' is not volume, bind or tmpfs"),
    ("HostConfig.Mounts.0.Type", "tmpfs", "Source must be empty for a tmpfs"),
    ("HostConfig.Mounts.0.ReadOnly", 1, "ReadOnly must be true or false"),
    *(("HostConfig.Mounts.0.Target", target, "Target") for target in (None, "", "/", "lake", "/a/../b", "/a/", "//a")),
    *(("HostConfig.Mounts.0.Target", target, "Target") for target in ("/proc", "/sys/fs", "/dev")),
    ("HostConfig.Mounts.1.ReadOnly", False, "Source spira-keys may only be mounted ReadOnly"),
    *(
        ("HostConfig.Mounts.2.Source", source, "of a bind is not allowed")
        for source in (
            "/",
            "/srv",
            "/srv/lake/",
            "/srv/lake/x",
            "/srv/lake/../..",
            "spira-lake",
            "/var/run/docker.sock",
        )
    ),
    ("HostConfig.Mounts.2.BindOptions", {"Propagation": "rshared"}, "BindOptions must be empty"),
    ("HostConfig.Mounts", {"0": {}}, "HostConfig.Mounts must be a list"),
    ("HostConfig.Mounts", ["/:/host"], "HostConfig.Mounts [0] must be an object"),
]
CLOSED = {
    "Privileged": True,
    "CapAdd": ["SYS_ADMIN"],
    "AutoRemove": True,
    "Binds": ["/:/host"],
    "VolumesFrom": ["other"],
    "VolumeDriver": "local",
    "Links": ["other:db"],
    "Devices": [{"PathOnHost": "/dev/sda"}],
    "DeviceCgroupRules": ["a *:* rwm"],
    "PidMode": "host",
    "UTSMode": "host",
    "UsernsMode": "host",
    "Cgroup": "container:other",
    "CgroupParent": "/",
    "Runtime": "other",
    "Sysctls": {"kernel.msgmax": "1"},
    "ExtraHosts": ["mlflow:10.0.0.1"],
    "Dns": ["10.0.0.1"],
    "DnsOptions": ["ndots:1"],
    "DnsSearch": ["example"],
    "GroupAdd": ["0"],
    "PortBindings": {"80/tcp": [{"HostPort": "80"}]},
    "PublishAllPorts": True,
    "OomKillDisable": True,
    "OomScoreAdj": -1000,
    "StorageOpt": {"size": "1t"},
    "ContainerIDFile": "/etc/passwd",
    "Ulimits": [{"Name": "nofile"}],
    "CpuQuota": 1,
    "KernelMemory": 1,
    "BlkioDeviceReadBps": [{"Path": "/dev/sda"}],
    "Isolation": "process",
    "privileged": True,
}


@pytest.mark.parametrize(("place", "value", "reason"), REFUSED)
def test_refused_for_a_reason(place, value, reason):
    assert any(reason in found for found in rules.violations(changed(place, value), POLICY))


@pytest.mark.parametrize("name", CLOSED)
def test_what_steps_do_not_need_is_closed(name):
    reasons = rules.violations(changed(f"HostConfig.{name}", CLOSED[name]), POLICY)
    assert reasons == [f"HostConfig.{name} is not among what a step may set, so it must be empty"]


def test_memory_is_bounded():
    (reason,) = rules.violations(description(mem_limit="513m", memswap_limit="513m"), POLICY)
    assert reason == f"HostConfig.Memory is {513 * MIB}; it must be above 0 and at most {512 * MIB} (SPIRA_MAX_MEMORY)"


@pytest.mark.parametrize(
    "change",
    [
        {"Driver": "cdi"},
        {"Capabilities": [["gpu", "admin"]]},
        {"Capabilities": None},
        {"Options": {"a": "b"}},
        {"options": {}},
        {"Count": -2},
        {"Count": True},
        {"DeviceIDs": ["a,b"]},
    ],
)
def test_a_gpu_and_nothing_else(change):
    (reason,) = rules.violations(changed("HostConfig.DeviceRequests", [GPU | change]), replace(POLICY, gpu=True))
    assert f"[0].{next(iter(change))}" in reason
    assert rules.violations(changed("HostConfig.DeviceRequests", [GPU, GPU]), replace(POLICY, gpu=True))


names = st.text(min_size=1, max_size=30)
values = st.recursive(
    st.booleans() | st.integers() | st.text() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)


@given(name=names, value=values, inside=st.booleans())
@example(name="MaskedPath", value=[[]], inside=True)
@example(name="Annotations", value={"": None}, inside=False)
def test_an_unknown_key_says_nothing_or_is_refused(name, value, inside):
    table, body = (rules.HOST if inside else rules.BODY), description()
    if name.casefold() in {known.casefold() for known in table}:
        return
    (body["HostConfig"] if inside else body)[name] = copy.deepcopy(value)
    reasons = rules.violations(body, POLICY)
    if value in (None, "", [], {}, 0):
        assert reasons == []
        assert rules.kept(body) == rules.kept(description())
    else:
        assert len(reasons) == 1
        assert ascii(name)[1:-1][:80] in reasons[0]


@given(st.dictionaries(st.sampled_from([*rules.BODY, *rules.HOST]), values))
def test_any_description_gets_an_answer(body):
    assert rules.violations(body, POLICY)
    assert rules.violations(description() | {"HostConfig": body}, POLICY)


def test_reasons_show_no_environment():
    body = description()
    body["Env"] = ["A=hush", "NVIDIA_X=hush", "no name=hush", "hush"]
    assert "hush" not in " ".join(rules.violations(body, POLICY))
