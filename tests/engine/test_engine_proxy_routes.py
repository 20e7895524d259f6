"""What the proxy before the engine reads: its policy, requests, JSON."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest
import routes
import strict_json
from policy import Policy, size

ENV = {
    "SPIRA_ALLOWED_IMAGES": "spira_train:latest, sha256:" + 64 * "a",
    "SPIRA_ALLOWED_VOLUMES": "spira-lake,spira-keys:ro,/srv/lake",
    "SPIRA_ALLOWED_NETWORKS": "spira-steps",
    "SPIRA_MAX_MEMORY": "8g",
    "SPIRA_MAX_CPUS": "1.5",
}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"User": "1:1", "User": "0:0"}',
        b'{"HostConfig": {"Memory": 1, "memory": 2}}',
        '{"KernelMemory": 1, "\u212aernelMemory": 2}'.encode(),  # the sign for kelvin, which Go takes for a k
        b'{"Mounts": [{"Source": "a", "SOURCE": "b"}]}',
        b'{"Image": "a"} {"Image": "b"}',
        b'{"Image": "a"}]',
        b'{"NanoCpus": NaN}',
        b'{"NanoCpus": ' + b"9" * 5000 + b"}",
        b'{"A": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        '{"Image": "a"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"\xff",
        b"[]",
        b"",
    ],
)
def test_ambiguous_json_is_refused(raw):
    with pytest.raises(ValueError, match=r"JSON|digits"):
        strict_json.read(raw)


def test_policy_from_the_environment():
    policy = Policy.read(ENV)
    assert policy.images == {"spira_train:latest", "sha256:" + 64 * "a"}
    assert policy.volumes == {"spira-lake": False, "spira-keys": True, "/srv/lake": False}
    assert (policy.memory, policy.cpus, policy.gpu) == (8 << 30, 1.5, False)
    assert Policy.read(ENV | {"SPIRA_ALLOW_GPU": "true"}).gpu
    assert [size(text) for text in ("1024", "64m", "8G", "1kb", "", "-1", "8 g", "1.5g")] == [
        1024, 64 << 20, 8 << 30, 1024, 0, 0, 0, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPIRA_ALLOWED_IMAGES", ""),
        ("SPIRA_ALLOWED_IMAGES", "a/../b"),
        ("SPIRA_ALLOWED_IMAGES", "sha256:abc"),
        ("SPIRA_ALLOWED_VOLUMES", "/"),
        ("SPIRA_ALLOWED_VOLUMES", "/srv/../etc"),
        ("SPIRA_ALLOWED_VOLUMES", "../etc"),
        ("SPIRA_ALLOWED_VOLUMES", "/srv,/srv/lake"),
        ("SPIRA_ALLOWED_VOLUMES", "lake:rw"),
        ("SPIRA_ALLOWED_VOLUMES", "lake,lake:ro"),
        ("SPIRA_ALLOWED_NETWORKS", "host"),
        ("SPIRA_ALLOWED_NETWORKS", "container:other"),
        ("SPIRA_MAX_MEMORY", ""),
        ("SPIRA_MAX_MEMORY", "much"),
        ("SPIRA_MAX_CPUS", "0"),
        ("SPIRA_MAX_CPUS", "nan"),
        ("SPIRA_ALLOW_GPU", "yes"),
    ],
)
def test_a_wrong_policy_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        Policy.read(ENV | {name: value})


@pytest.mark.parametrize(
    ("method", "path", "query", "url"),
    [
        ("GET", "/_ping", "", "/_ping"),
        ("HEAD", "/v1.41/_ping", "", "/v1.41/_ping"),
        ("GET", "/version", "", "/version"),
        ("POST", "/v1.50/containers/create", "", "/v1.50/containers/create"),
        ("GET", "/v1.41/containers/a_b-c.d/logs", "follow=1&tail=all", "/v1.41/containers/ID/logs?follow=1&tail=all"),
        ("POST", "/containers/abc/stop", "t=10", "/containers/ID/stop?t=10"),
        ("DELETE", "/containers/abc", "v=False&link=False&force=True", "/containers/ID?v=False&link=False&force=True"),
    ],
)
def test_routes(method, path, query, url):
    assert routes.accept(method, path, query).url("ID") == url


@pytest.mark.parametrize("filters", ['{"label": ["spira.task", "spira.stack=a"]}', "{}", None])
def test_a_list_is_narrowed(filters):
    query = "all=1" + (f"&filters={filters}" if filters else "")
    (found,) = parse_qs(urlsplit(routes.accept("GET", "/containers/json", query).url()).query)["filters"]
    assert json.loads(found)["label"] == [*json.loads(filters or "{}").get("label", []), "spira.dag"]


# fmt: off
ODD_PATHS = [
    "/v1.41/../containers/json", "/containers/../_ping", "/containers/./json", "//containers/json",
    "/v1.41//containers/json", "/containers//json", "/containers/json/", "/containers/json?", "/containers/a%2Fjson",
    "/containers/%2e%2e/json", "/containers/..", "/containers/a%00/json", "/containers/-a/json",
    "/v1.24/containers/json", "/v1.40/_ping", "/v1.410/_ping", "/v2.0/_ping", "/v1/_ping", "/V1.41/_ping",
    "/v1.41/v1.41/_ping", "/v1.41", "/v1.41/", "/", "*", "http://engine/_ping", "/_ping;a", "/Containers/json",
    "/containers/a/exec", "/containers/a/attach", "/containers/a/archive", "/containers/a/export",
    "/containers/a/changes", "/containers/a/top", "/containers/a/stats", "/containers/a/attach/ws", "/images/json",
    "/images/a/history", "/info", "/events", "/volumes", "/networks", "/system/df", "/swarm", "/nodes", "/services",
    "/tasks", "/secrets", "/configs", "/plugins", "/distribution/a/json",
]
# fmt: on


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_paths_are_refused(path):
    with pytest.raises(ValueError, match=r"not among the requests|versions 1\.41"):
        routes.accept("GET", path, "")


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("POST", "/containers/create", "name=a"),
        ("POST", "/containers/create", "platform=linux"),
        ("POST", "/containers/a/start", "detachKeys=a"),
        ("DELETE", "/containers/a", "link=1"),
        ("GET", "/containers/a/json", "size=1"),
        ("GET", "/containers/json", "size=1"),
        ("GET", "/containers/json", "all=1&all=0"),
        ("GET", "/containers/json", "filters={}&filters={}"),
        ("GET", "/containers/json", "filters=[]"),
        ("GET", "/containers/json", 'filters={"label": {"a": true}}'),
        ("GET", "/containers/json", 'filters={"label": [], "Label": []}'),
        ("GET", "/containers/json", 'filters={"volume": ["a"]}'),
        ("GET", "/containers/json", "all"),
        ("GET", "/containers/json", "all=%ff"),
        ("POST", "/containers/a/wait", "condition=ever"),
        ("POST", "/containers/a/kill", "signal=a b"),
    ],
)
def test_odd_queries_are_refused(method, path, query):
    with pytest.raises(ValueError, match=r"query|filter|JSON"):
        routes.accept(method, path, query)
