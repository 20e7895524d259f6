"""Which requests may reach the engine at all: a closed list of paths, and of their query parameters."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import strict_json

LABEL = "spira.dag"  # who carries it is a step's container; all others are as if they were not there
# Before 1.41 the engine reads some requests differently: the start of a container could still change its settings.
VERSION = re.compile(r"/v1\.(4[1-9]|[5-9][0-9])(?=/)")
SUBJECTS = {"{container}": r"(?P<subject>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})", "{image}": r"(?P<subject>[^?#]+)"}
FLAG, NO, NUMBER, TIME = r"0|1|[Tt]rue|[Ff]alse", r"0|[Ff]alse", r"-?[0-9]{1,9}", r"-?[0-9]{1,19}(\.[0-9]{1,9})?"
SIGNAL = r"[A-Z0-9+]{1,12}"
FILTERS = {"label", "status", "id", "name", "exited"}


@dataclass(frozen=True)
class Route:
    """Methods and a path that are let through. query: the parameters it may have, and what they must look like."""

    methods: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)

    def match(self, method: str, path: str) -> re.Match[str] | None:
        """The match whose group `subject`, where the path has one, is the container or the image."""
        pattern = re.escape(self.path).replace(r"\{", "{").replace(r"\}", "}")
        for name, subject in SUBJECTS.items():
            pattern = pattern.replace(name, subject)
        return re.fullmatch(pattern, path) if method in self.methods.split() else None


@dataclass(frozen=True)
class Call:
    """An accepted request: the route, and what it leaves open. subject: as the request names it."""

    route: Route
    method: str
    version: str
    subject: str
    query: Mapping[str, str]

    def url(self, subject: str = "") -> str:
        """Path and query for the engine, put together anew. subject: what the request's own stands for."""
        path = self.version + self.route.path.replace("{container}", subject).replace("{image}", subject)
        return f"{path}?{urlencode(self.query)}" if self.query else path


PING = Route("GET HEAD", "/_ping")
INFO = Route("GET", "/version")
IMAGE = Route("GET", "/images/{image}/json")
CREATE = Route("POST", "/containers/create")
LISTING = Route(
    "GET", "/containers/json", {"all": FLAG, "limit": NUMBER, "size": NO, "trunc_cmd": FLAG, "filters": r"(?s).*"}
)
CONTAINER = (
    Route("GET", "/containers/{container}/json"),
    Route(
        "GET",
        "/containers/{container}/logs",
        {"stdout": FLAG, "stderr": FLAG, "follow": FLAG, "timestamps": FLAG, "tail": r"all|[0-9]{1,9}"}
        | {"since": TIME, "until": TIME},
    ),
    Route("POST", "/containers/{container}/start"),
    Route("POST", "/containers/{container}/wait", {"condition": "not-running|next-exit|removed"}),
    Route("POST", "/containers/{container}/stop", {"t": r"[0-9]{1,4}(\.0)?", "signal": SIGNAL}),
    Route("POST", "/containers/{container}/kill", {"signal": SIGNAL}),
    Route("DELETE", "/containers/{container}", {"force": FLAG, "v": FLAG, "link": NO}),
)
ROUTES = (PING, INFO, IMAGE, CREATE, LISTING, *CONTAINER)


def accept(method: str, path: str, query: str) -> Call:
    """The request as a call that may go on; raises `ValueError` saying why it may not.

    path: as it came, not decoded; an encoded slash or dot is therefore no part of any route.
    """
    version = VERSION.match(path)
    rest = path[version.end() :] if version else path
    for route in ROUTES:
        if found := route.match(method, rest):
            given = _query(route, query)
            return Call(route, method, version[0] if version else "", found.groupdict().get("subject", ""), given)
    if re.match(r"/v[0-9]", rest):
        raise ValueError("only versions 1.41 to 1.99 of the API are let through")
    raise ValueError("not among the requests that a step needs")


def _query(route: Route, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise ValueError("the query cannot be read") from None
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ValueError("a query parameter is given twice")
    for name, value in given.items():
        if name not in route.query:
            raise ValueError(f"the query parameter {ascii(name)[:80]} is not among those that a step needs")
        if not re.fullmatch(route.query[name], value):
            raise ValueError(f"the query parameter {name} is {ascii(value)[:80]}, which is not allowed")
    return given | {"filters": _ours(given.get("filters", "{}"))} if route is LISTING else given


def _ours(filters: str) -> str:
    """`filters` of a list of containers, narrowed to those that carry the label."""
    wanted = strict_json.read(filters.encode())
    for name, values in wanted.items():
        if name not in FILTERS:
            raise ValueError(f"the filter {ascii(name)[:80]} is not among those that a step needs")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"the filter {name} is not a list of texts")
    return json.dumps(wanted | {"label": [*wanted.get("label", []), LABEL]})
