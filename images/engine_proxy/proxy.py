"""A proxy before the Docker engine's socket: it lets through what the steps of the pipeline need, and nothing else.

Whoever may talk to the engine is root on its host, unless every container he asks for is looked at first: `routes`
says which requests there are, `rules` what a new container may be, `policy` what this installation allows it.
"""

import dataclasses
import json
import logging
import os
import re
import sys
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import routes
import rules
import strict_json
import uvicorn
from policy import Policy
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

MAX_BODY = 1 << 20
# What belongs to one connection, and not to the message that goes through both.
HOPS = {b"connection", b"keep-alive", b"proxy-authenticate", b"te", b"trailer", b"transfer-encoding", b"upgrade"}

log = logging.getLogger("engine-proxy")


class Refused(Exception):
    """The request does not reach the engine. reasons: what is wrong, for the log and for who asked."""

    def __init__(self, *reasons: str, status: int = 403) -> None:
        super().__init__("; ".join(reasons))
        self.status = status


class EngineProxy:
    """The ASGI application: one engine, one policy."""

    def __init__(self, socket: str, policy: Policy) -> None:
        self.socket = socket
        self.policy = policy
        # No limit of time: a log is followed for as long as a step runs. Who has waited enough hangs up, and that is
        # handed on. No connection is kept: the engine may close it just when it is wanted again.
        self.engine = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=socket, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
            ),
            base_url="http://engine",
            timeout=httpx.Timeout(None, connect=5),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. It ends when either side ends: the engine works for nobody who has gone."""
        request, answer = Request(scope, receive), _Answer(send)
        try:
            call = self._accept(request)
            body = await _body(request)
        except ClientDisconnect:
            return
        except Refused as refused:
            await self._refuse(request, refused, answer)
            return

        async with anyio.create_task_group() as group:

            async def serve() -> None:
                try:
                    await self._serve(call, body, answer)
                except Refused as refused:
                    await self._refuse(request, refused, answer)
                except httpx.HTTPError as error:
                    await self._apologise(request, error, answer)
                group.cancel_scope.cancel()

            group.start_soon(serve)
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

    def _accept(self, request: Request) -> routes.Call:
        headers = request.headers
        if "upgrade" in headers or "upgrade" in headers.get("connection", "").lower():
            raise Refused("a connection cannot be turned into a stream (attach, exec and sessions need that)")
        try:
            path, query = request.scope["raw_path"].decode("ascii"), request.scope["query_string"].decode("ascii")
            return routes.accept(request.method, path, query)
        except ValueError as error:
            raise Refused(str(error)) from None

    async def _serve(self, call: routes.Call, raw: bytes, answer: "_Answer") -> None:
        if call.route is not routes.CREATE and raw:
            raise Refused("this request takes no body")
        content, subject = None, ""
        if call.route is routes.CREATE:
            content = await self._checked(raw)
        elif call.route is routes.IMAGE:
            subject = self._image(call.subject)
        elif call.subject:
            subject = await self._owned(call.subject)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        async with self.engine.stream(call.method, call.url(subject), content=content, headers=headers) as response:
            kept = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOPS]
            await answer.begin(response.status_code, kept)
            async for chunk in response.aiter_raw():
                await answer.go_on(chunk)
            await answer.end()

    async def _checked(self, raw: bytes) -> bytes:
        try:
            body = strict_json.read(raw)
            reasons = rules.violations(body, await self._knowing(body.get("Image")))
        except ValueError as error:
            raise Refused(f"the container's description: {error}") from None
        except RecursionError:
            raise Refused("the container's description is nested too deeply") from None
        if reasons:
            raise Refused(*reasons)
        return json.dumps(rules.kept(body)).encode()

    async def _knowing(self, image: Any) -> Policy:
        """The policy; with `image` too where it is the id that an allowed name stands for."""
        if isinstance(image, str) and image.startswith("sha256:") and image not in self.policy.images:
            for name in self.policy.images:
                found = await self.engine.get(f"/images/{name}/json")
                if found.status_code == 200 and found.json()["Id"] == image:
                    return dataclasses.replace(self.policy, images=self.policy.images | {image})
        return self.policy

    def _image(self, asked: str) -> str:
        for name in self.policy.images:
            if asked in (name, quote(name, safe="/:")):  # as it is, and as the SDK writes it
                return name
        allowed = ", ".join(sorted(self.policy.images))
        raise Refused(f"image {asked[:200]} is not among the allowed ({allowed}; SPIRA_ALLOWED_IMAGES)")

    async def _owned(self, asked: str) -> str:
        """The whole id of a step's container. By it the request goes on: a name could meanwhile mean another."""
        found = await self.engine.get(f"/containers/{asked}/json")
        if found.status_code >= 500:
            raise Refused(f"the Docker engine failed at container {asked}: {found.text[:500]}", status=502)
        if found.status_code != 200 or not (found.json()["Config"]["Labels"] or {}).get(routes.LABEL):
            # The same answer where there is none: what else runs on the engine is not shown.
            raise Refused(f"no container {asked} that is a step's (label {routes.LABEL})", status=404)
        return str(found.json()["Id"])

    async def _refuse(self, request: Request, refused: Refused, answer: "_Answer") -> None:
        path = ascii(request.scope["raw_path"].decode("latin-1"))[1:-1]
        log.warning("refused %s %s: %s", request.method, path[:300], refused)
        await answer.whole(refused.status, f"engine proxy: {refused}")

    async def _apologise(self, request: Request, error: httpx.HTTPError, answer: "_Answer") -> None:
        reason = str(error) or type(error).__name__
        log.error("%s %s: the engine at %s: %s", request.method, request.scope["raw_path"], self.socket, reason)
        if answer.begun:  # not ended: the server cuts it off then, so that nobody takes the half for the whole
            return
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            what = f"does not answer at {self.socket} ({reason})"
            hint = "start it, and see that the proxy's user may open its socket (group_add)"
            await answer.whole(503, f"engine proxy: the Docker engine {what}; {hint}")
        else:
            await answer.whole(502, f"engine proxy: the Docker engine broke off ({reason}); try again")


class _Answer:
    """What goes back to who asked."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.begun = False

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def go_on(self, chunk: bytes) -> None:
        await self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, message: str) -> None:
        """An error as the engine itself would put it; clients show its message."""
        body = json.dumps({"message": message}).encode()
        await self.begin(status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))])
        await self.go_on(body)
        await self.end()


async def _body(request: Request) -> bytes:
    body, length = bytearray(), 0
    async for chunk in request.stream():  # to its end, or who still sends would not see the answer
        length += len(chunk)
        if length <= MAX_BODY:
            body += chunk
    if length > MAX_BODY:
        raise Refused(f"the body is longer than {MAX_BODY} bytes")
    return bytes(body)


def main() -> None:
    """Serve until told to stop; ends with a message where a setting is wrong."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    env = os.environ
    port = env.get("SPIRA_PROXY_PORT", "2375")
    try:
        policy = Policy.read(env)
        if not re.fullmatch("[0-9]{1,5}", port):
            raise ValueError(f"SPIRA_PROXY_PORT is {port!r}; it must be a port's number")
    except ValueError as error:
        sys.exit(f"engine proxy: {error}")
    uvicorn.run(
        EngineProxy(env.get("SPIRA_ENGINE_SOCKET", "/var/run/docker.sock"), policy),
        host=env.get("SPIRA_PROXY_HOST", "0.0.0.0"),  # noqa: S104 - of its container, on a network of two
        port=int(port),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=2,  # who follows a log would hold it up
    )


if __name__ == "__main__":
    main()
