"""One client's connection: uvicorn's, held to `Limits`.

uvicorn bounds neither the time a request takes to arrive, nor its size, nor the time a client takes to read its answer.
Here a request reaches the application when all of it has arrived; what breaks a limit is answered at once
(`{"error": ...}`, then the connection closes), and the application never learns of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rltemp.service.limits import UNCOUNTED, Budget, Limits

LINGER = 2.0
"""Seconds that a refused client may go on sending: closed at once, its system would drop the answer unread."""
REPEAT = {HTTPStatus.SERVICE_UNAVAILABLE: b"retry-after: 1\r\n"}


class RefusedError(Exception):
    """Stops the parser: the request was answered."""


class Whole:
    """Calls an application once a request's body is there; its bytes are given back when the application has ended."""

    def __init__(self, app: Any, budget: Budget) -> None:
        self.app, self.budget = app, budget
        self.size = self.counted = 0

    def grow(self, size: int) -> bool:
        """Count arriving bytes; says whether there is room for them among those of all other requests."""
        self.size += size
        more = max(0, self.size - UNCOUNTED) - self.counted
        if not self.budget.take(more):
            return False
        self.counted += more
        return True

    def end(self) -> None:
        """Give the bytes back."""
        self.budget.give(self.counted)
        self.counted = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be the ASGI application of one request."""
        try:
            parts, more = [], True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                parts.append(message["body"])
                more = message["more_body"]
            arrived = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
            del parts, message

            async def whole() -> Any:
                return arrived.pop() if arrived else await receive()

            await self.app(scope, whole, send)
        finally:
            self.end()


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection within limits.

    Args:
        limits: What a client is held to.
        budget: The bytes of all connections' requests.
        on_refusal: Called with the status of every request that is refused here.
        uvicorn: What uvicorn gives its connections.
    """

    def __init__(self, *, limits: Limits, budget: Budget, on_refusal: Callable[[int], None], **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.limits, self.budget, self.on_refusal = limits, budget, on_refusal
        self.application = self.app
        self.refused = self.in_head = self.in_body = False
        self.head_bytes = 0
        self.due = self.answer_due = math.inf

    def connection_made(self, transport: Any) -> None:
        """Take a new connection, where there is room for it."""
        super().connection_made(transport)
        self.due = self.loop.time() + self.limits.head_seconds
        if len(self.connections) > self.limits.connections:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what requests that will not be answered hold."""
        super().connection_lost(exc)
        for _, app in self.pipeline:
            cast(Whole, app).end()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self.refused:
            return
        went_on = self.in_head
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
        if self.in_head and went_on:
            self.head_bytes += len(data)
            if self.head_bytes > self.limits.head_bytes:
                self.refuse(*self._large_head())

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.in_head, self.head_bytes = True, 0
        self.due = min(self.due, self.loop.time() + self.limits.head_seconds)

    def on_headers_complete(self) -> None:
        """Decide by the headers whether the request may go on."""
        refusal = self._refusal()
        if refusal:
            self._stop(*refusal)
        self.in_head, self.in_body = False, True
        self.due = self.loop.time() + self.limits.body_seconds
        self.app = Whole(self.application, self.budget)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        request = cast(Whole, self.app)
        if request.size + len(body) > self.limits.request_bytes:
            self._stop(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large())
        if not request.grow(len(body)):
            self._stop(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at once; try again in a moment")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request: its answer is the application's affair."""
        self.in_body, self.due = False, math.inf
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End an answer."""
        another = bool(self.pipeline)
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # `hold` watches idle connections too
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if not (another or self.in_head or self.in_body):
            self.due = self.loop.time() + self.limits.idle_seconds

    def hold(self, now: float) -> None:
        """End what takes too long; called several times a second."""
        if not self.transport.get_write_buffer_size():
            self.answer_due = math.inf
        elif math.isinf(self.answer_due):
            self.answer_due = now + self.limits.write_seconds
        if now > self.answer_due or (now > self.due and self.refused):
            self.transport.abort()
        elif now > self.due:
            self._expire()

    def refuse(self, status: HTTPStatus, error: str) -> None:
        """Answer for the application, and close; without an answer where earlier requests still wait for theirs."""
        if self.refused:
            return
        self.refused = True
        self.on_refusal(int(status))
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (answering and not self.in_body):
            self.transport.abort()
            return
        if answering:
            self.cycle.disconnected = True  # ends what waits for the body
            self.cycle.message_event.set()
        self.transport.write(_answer(status, error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.due = self.loop.time() + LINGER

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as asked:  # not granted: what follows is HTTP/1.1 too
                data = data[asked.args[0] :]

    def _expire(self) -> None:
        if self.in_head or self.in_body:
            part, seconds = ("body", self.limits.body_seconds) if self.in_body else ("head", self.limits.head_seconds)
            self.refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's {part} did not arrive within {seconds:g} s")
        else:
            self.transport.close()

    def _stop(self, status: HTTPStatus, error: str) -> None:
        self.refuse(status, error)
        raise RefusedError(error)

    def _too_large(self) -> str:
        return f"the body is larger than {self.limits.request_bytes:,} bytes; send fewer samples at once"

    def _large_head(self) -> tuple[HTTPStatus, str]:
        limit = f"{self.limits.head_bytes:,}"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"address and headers are more than {limit} bytes"

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """What is wrong with the headers, if something is."""
        if len(self.pipeline) >= self.limits.pipelined:
            return HTTPStatus.BAD_REQUEST, "too many requests ahead of their answers"
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            return HTTPStatus.BAD_REQUEST, "this server speaks HTTP/1.1"
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"content-length" and int(value) > self.limits.request_bytes:
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large()
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return HTTPStatus.BAD_REQUEST, "the only transfer encoding known here is chunked"
            if name in (b"content-length", b"transfer-encoding") and self.parser.should_upgrade():
                return HTTPStatus.BAD_REQUEST, "this server speaks HTTP/1.1 alone; send bodies without Upgrade"
            hosts += name == b"host"
        if size > self.limits.head_bytes:
            return self._large_head()
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            return HTTPStatus.BAD_REQUEST, f"a request needs one Host header; this one has {hosts}"
        return None


def _answer(status: HTTPStatus, error: str) -> bytes:
    body = json.dumps({"error": error}).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head.encode() + REPEAT.get(status, b"") + b"content-length: %d\r\n\r\n" % len(body) + body
