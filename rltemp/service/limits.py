"""What one client may take of the server, and the ASGI middleware that holds every request to it.

The middleware bounds the size of a body, the total time in which it must arrive, and the total time in which an answer
must be taken. Heads of requests and idle connections are uvicorn's affair: docs/service.md says what it bounds, and
how to put a reverse proxy in front.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rltemp.errors import RltempError
from rltemp.service.refusals import Refusal, busy

LINGER_SECONDS = 2.0
"""A refused client may go on sending for so long: closed at once, its system would drop the answer unread."""
UNCOUNTED_BYTES = 64 * 2**10
"""Bytes of each request that `bytes_in_flight` leaves out, so that small requests always pass."""
PIECE_BYTES = 64 * 2**10
"""Of an answer that is handed to the server at once; it takes the next piece when the client has read this one."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what arrives and on how long it takes."""

    request_bytes: int = 8 * 2**20
    """A request's body: 1,024 samples of 1,000 classes from both networks fit, in float32."""
    bytes_in_flight: int = 64 * 2**20
    """Bodies of all requests together."""
    head_bytes: int = 16 * 2**10
    """Request line and headers, as long as they are incomplete; uvicorn's."""
    body_seconds: float = 10.0
    """From the first wish to read the body to its end."""
    answer_seconds: float = 10.0
    """From the first byte of an answer until the client has taken it."""
    idle_seconds: int = 60
    """A connection between two requests; uvicorn's."""
    connections: int = 512
    """Open at once; uvicorn's."""
    shutdown_seconds: int = 5
    """For requests that are under way when the server is asked to stop; uvicorn's."""


class SlowReaderError(RltempError, RuntimeError):
    """The client did not take its answer in time; the server closes the connection."""


class LimitedRequests:
    """An ASGI middleware that holds requests to limits.

    `receive` raises `Refusal` where a body is too large or comes too slowly, which the application answers; `send`
    raises `SlowReaderError`, which ends the connection.

    Args:
        app: The application.
        limits: What its clients are held to.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self.limits = limits
        self.held = 0
        """Bytes of all bodies, as far as `bytes_in_flight` counts them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        try:
            await self._app(scope, request.receive, request.send)
        finally:
            self.held -= request.held


class _Request:
    """One request: how much of its body came, and until when its answer must be taken."""

    def __init__(self, shared: LimitedRequests, scope: Scope, receive: Receive, send: Send) -> None:
        self._shared, self._limits = shared, shared.limits
        self._receive, self._send = receive, send
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"")
        self._declared = int(declared) if declared.isdigit() else 0
        self._ambiguous = bool(declared) and b"transfer-encoding" in headers
        self._unread = self._declared > 0 or b"transfer-encoding" in headers
        self._size = self.held = 0
        self._body_end = self._answer_end = 0.0

    async def receive(self) -> Message:
        """Receive a part of the body.

        Raises:
            Refusal: 400, 408, 413 or 503.
        """
        if not self._unread:
            return await self._receive()
        if not self._body_end:
            self._check_declaration()
            self._body_end = time.monotonic() + self._limits.body_seconds
        try:
            with anyio.fail_after(self._body_end - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            raise Refusal(408, f"the request's body did not arrive within {seconds} s", "too_slow") from None
        self._unread = message.get("more_body", False)
        self._take(len(message.get("body", b"")))
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, in pieces that the server hands on as the client reads them.

        Raises:
            SlowReaderError: Where the client takes too long to read.
        """
        if message["type"] == "http.response.start":
            self._answer_end = time.monotonic() + self._limits.answer_seconds
            if self._unread:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await self._deliver(message)
            return
        body, last = message.get("body", b""), not message.get("more_body", False)
        for start in range(0, max(len(body), 1), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            end = last and start + PIECE_BYTES >= len(body)
            if end and self._unread:
                await self._deliver({**message, "body": piece, "more_body": True})
                await self._linger()
                piece = b""
            await self._deliver({**message, "body": piece, "more_body": not end})

    async def _deliver(self, message: Message) -> None:
        try:
            with anyio.fail_after(self._answer_end - time.monotonic()):
                await self._send(message)
        except TimeoutError:
            raise SlowReaderError from None

    async def _linger(self) -> None:
        """Let a client that sends on read its answer, before the connection closes."""
        with anyio.move_on_after(LINGER_SECONDS):
            while (await self._receive()).get("more_body", False):
                pass

    def _check_declaration(self) -> None:
        if self._ambiguous:
            raise Refusal(400, "send either Content-Length or Transfer-Encoding, not both", "syntax")
        if self._declared > self._limits.request_bytes:
            raise self._too_large()

    def _take(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.request_bytes:
            raise self._too_large()
        more = max(0, self._size - UNCOUNTED_BYTES) - self.held
        if self._shared.held + more > self._limits.bytes_in_flight:
            raise busy("too many large requests at once; try again in a moment")
        self.held += more
        self._shared.held += more

    def _too_large(self) -> Refusal:
        message = f"the body is larger than {self._limits.request_bytes:,} bytes; send fewer samples at once"
        return Refusal(413, message, "too_large")
