"""The service as an ASGI application: who may ask, what is counted, and the routes.

FastAPI has the routes that are asked now and then, and the schema of all. Inference, which a training step waits for,
is answered before it: its validation alone would take longer than the answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI

from rltemp.kd.names import split_spec
from rltemp.service.answers import encode
from rltemp.service.bodies import Disconnected, Message, Receive, read_body
from rltemp.service.limits import Limits
from rltemp.service.logs import LOGGER, Seldom, event
from rltemp.service.metrics import Metrics
from rltemp.service.models import Model
from rltemp.service.ports import Inference
from rltemp.service.refusals import Reason, Refusal
from rltemp.service.replies import Send, failure, failure_body, reply
from rltemp.service.repository import Repository, rule_names
from rltemp.service.routes import application
from rltemp.service.tensors import decode
from rltemp.service.tokens import allowed

IN_LOOP, JSON_IN_LOOP = 5 * 2**16, 2**15
"""Bytes of a request that is worked on between two others, which takes 1 ms; a larger one goes to a thread."""
THREADS = 2
"""Large requests at once."""

Scope = dict[str, Any]

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/([a-z]+))?")
_OPEN = re.compile(r"/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready")


class Service:
    """The temperature controller, an ASGI 3 application.

    Args:
        repository: What is served.
        limits: What one request may take.
        token: That every request but those for health has to carry; None asks for none.
        log_requests: Log a line for every request.
        routers: Further routes, of learning.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        limits: Limits | None = None,
        token: bytes | None = None,
        log_requests: bool = False,
        routers: Sequence[APIRouter] = (),
    ) -> None:
        self.repository = repository
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self._token = token
        self._log_requests = log_requests
        self._seldom = Seldom()
        self._threads: anyio.CapacityLimiter | None = None
        self.app: FastAPI = application(repository, self.metrics, token is not None, routers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        answer = _Watched(send)
        found = _MODEL.fullmatch(path := scope["path"])
        name, version, tail = found.groups() if found else (None, None, None)
        refusal: Refusal | None = None
        try:
            if self._token is not None and not _OPEN.fullmatch(path) and not allowed(scope["headers"], self._token):
                raise Refusal(401, "not authorized", "unauthorized", {"www-authenticate": "Bearer"})
            if name is not None and tail == "infer" and scope["method"] == "POST":
                await self._infer(scope, receive, answer, name, version, started)
            else:
                scope["state"] = {**scope.get("state", {}), "refuse": None}
                await self.app(scope, receive, answer)
                refusal = scope["state"]["refuse"]
        except Refusal as error:
            refusal = error.with_traceback(None)  # whose frames would keep the request until the next collection
            await failure(answer, error)
        except Disconnected:
            answer.status = 499
        except Exception:
            LOGGER.exception("internal error", extra={"path": path[:200]})
            if not answer.status:
                await reply(answer, 500, failure_body("internal error"), b"application/json")
        self._account(scope, name, tail, answer.status, started, refusal)

    def refused(self, status: int) -> None:
        """Count a request that the host refused before it came here."""
        reasons: dict[int, Reason] = {408: "too_slow", 413: "too_large", 431: "too_large", 503: "overloaded"}
        reason = reasons.get(status, "syntax")
        self.metrics.answered("none", "", status)
        self._refused(Refusal(status, "refused by the host", reason), "")

    async def _infer(
        self, scope: Scope, receive: Receive, send: Send, name: str, version: str | None, started: float
    ) -> None:
        model = self.repository.find(name, version)
        length = header_length(scope["headers"])
        body = await read_body(receive, self.limits.request_bytes)
        if len(body) <= (JSON_IN_LOOP if length is None else IN_LOOP):
            data, header, found = infer(model, body, length)
        else:
            if self._threads is None:
                self._threads = anyio.CapacityLimiter(THREADS)
            data, header, found = await anyio.to_thread.run_sync(infer, model, body, length, limiter=self._threads)
        self.metrics.inferred(model.kind, time.perf_counter() - started, found.samples, found.clamped)
        if header is None:
            await reply(send, 200, data, b"application/json")
        else:
            extra = ((b"inference-header-content-length", b"%d" % header),)
            await reply(send, 200, data, b"application/octet-stream", extra)

    def _account(
        self, scope: Scope, name: str | None, tail: str | None, status: int, started: float, refusal: Refusal | None
    ) -> None:
        kind = self._kind(name)
        self.metrics.answered(route_of(scope["path"], name, tail), kind, status)
        if refusal is not None:
            self._refused(refusal, kind)
        if self._log_requests:
            seconds = round(time.perf_counter() - started, 6)
            path = scope["path"][:300]
            event("request", method=scope["method"], path=path, code=status, seconds=seconds)

    def _refused(self, refusal: Refusal, model: str) -> None:
        self.metrics.refused(refusal)
        if (passed := self._seldom.due(refusal.reason)) is not None:
            error = refusal.message[:300]
            event("refused", code=refusal.status, reason=refusal.reason, error=error, model=model, more=passed)

    def _kind(self, name: str | None) -> str:
        """A model's name where it is one of few, for the metrics."""
        if name is None or name in self.repository.policies():
            return name or ""
        kind = split_spec(name)[0]
        return kind if kind in rule_names() else "other"


class _Watched:
    """The connection's `send`, which remembers the status code."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        return self._send(message)


def infer(model: Model, body: bytes, length: int | None) -> tuple[bytes, int | None, Inference]:
    """Read a request, answer it, write the answer: its body, the length of its JSON where bytes follow, and what it is.

    Raises:
        Refusal: Where the request cannot be answered.
    """
    request = decode(body, length)
    outputs = None if request.outputs is None else tuple(request.outputs)
    found = model.infer(request.inputs, outputs)
    return *encode(model.name, model.version, found.outputs, request), found


def header_length(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """What `Inference-Header-Content-Length` says.

    Raises:
        Refusal: 400 where it is no number, 415 for a body of another type or encoding than those that are read.
    """
    length = None
    for name, value in headers:
        if name == b"inference-header-content-length":
            if not value.isdigit() or len(value) > 10 or length is not None:
                raise Refusal(400, "Inference-Header-Content-Length is no number of bytes", "content")
            length = int(value)
        elif name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
            if kind not in (b"application/json", b"application/octet-stream"):
                message = "send Content-Type application/json, or application/octet-stream for tensors as bytes"
                raise Refusal(415, message, "media_type")
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "compressed bodies are not read; send it as it is", "media_type")
    return length


def route_of(path: str, name: str | None, tail: str | None) -> str:
    """The route of a path, for the metrics: one of few."""
    if name is not None:
        return tail if tail in ("infer", "policy", "ready", "experience", "centre") else "other" if tail else "metadata"
    known = {
        "/v2": "server",
        "/v2/health/live": "live",
        "/v2/health/ready": "ready",
        "/v2/repository/index": "index",
        "/metrics": "metrics",
    }
    return known.get(path, "other")
