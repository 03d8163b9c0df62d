"""What every request passes: who it is, how large its body is, and how long that takes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .errors import RefusedError
from .keys import Keys
from .limits import Limits
from .metrics import Metrics

Message = MutableMapping[str, Any]
Scope = Message
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = re.compile(r"/healthz|/readyz|/v1/images/[0-9a-f]{24}/\d+\.png")
"""What is read without a key: probes, and pictures, whose address is a secret."""

PAGE = re.compile(r"/|/studio(/.*)?")
"""The page in the browser: it asks for a key as for a password."""

access = logging.getLogger("guidestar.access")


class Guard:
    """Lets requests through to an application that say who they are and are not too large.

    It writes the access log, without queries and bodies.

    Args:
        app: behind it.
        keys: that are accepted; none for anyone.
        limits: of bodies.
        metrics: that count answers.
        hosts: names by which the server may be called; None for any. On loopback this keeps pages
            of other sites from reaching it under a name of their own.
    """

    def __init__(
        self, app: Any, *, keys: Keys, limits: Limits, metrics: Metrics, hosts: set[str] | None
    ) -> None:
        self.app, self.keys, self.limits = app, keys, limits
        self.metrics, self.hosts = metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._admit(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), noting)
        except RefusedError as error:
            if not status:
                await _answer(error, noting, asking=bool(PAGE.fullmatch(scope["path"])))
        finally:
            self.metrics.count_answer(status)
            seconds = time.perf_counter() - started
            owner = scope.get("state", {}).get("owner", "-")
            line = (owner, scope["method"], scope["path"][:200], status, 1000 * seconds)
            access.info("%s %s %s %d %.0f ms", *line)

    def _admit(self, scope: Scope) -> None:
        """Find out who it is.

        Raises:
            RefusedError: a wrong host, or no key that is accepted.
        """
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").rsplit(":", 1)[0] if b"host" in headers else ""
        if self.hosts is not None and host not in self.hosts:
            raise RefusedError(421, "wrong_host", f"this server is not {host[:100]!r}")
        client = scope.get("client") or ("unknown", 0)
        owner: str | None = f"client-{client[0]}"
        is_open = scope["method"] == "GET" and OPEN.fullmatch(scope["path"])
        if self.keys and not is_open:
            owner = self.keys.owner(_key(headers, scope["path"]))
            if owner is None:
                text = "a key is needed: Authorization: Bearer KEY"
                raise RefusedError(401, "invalid_api_key", text)
        scope.setdefault("state", {})["owner"] = owner

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body, within its size and time."""
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and int(value) > self.limits.body:
                raise _too_large(self.limits)
        parts, size, more = [], 0, True
        deadline = time.monotonic() + self.limits.receive
        while more:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                text = f"the body did not arrive in {self.limits.receive:g} seconds"
                raise RefusedError(408, "timeout", text) from None
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "disconnected", "the client has gone")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body:
                raise _too_large(self.limits)
            more = message.get("more_body", False)
        return b"".join(parts)


def _key(headers: dict[bytes, str], path: str) -> str:
    """Return the key of a request; a browser that asks for the page gives it as a password."""
    kind, _, key = headers.get(b"authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return key.strip()
    if kind.lower() == "basic" and PAGE.fullmatch(path):
        try:
            return base64.b64decode(key, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return headers.get(b"x-api-key", "")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hand the body on in one piece, and then whatever comes (the client's leaving)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, "too_large", f"a body may have {limits.body:,} bytes at most")


async def _answer(error: RefusedError, send: Send, *, asking: bool = False) -> None:
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    if asking and error.status == 401:
        headers["www-authenticate"] = 'Basic realm="guidestar: any name, a key as the password"'
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
