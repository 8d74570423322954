"""The service as an ASGI application: who may ask, what is counted and logged, and how mistakes are answered."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

import rltemp
from rltemp.kd.names import split_spec
from rltemp.service.limits import LimitedRequests, Limits, SlowReaderError
from rltemp.service.logs import LOGGER, event
from rltemp.service.metrics import Metrics
from rltemp.service.refusals import Refusal, error_response
from rltemp.service.repository import Repository, rule_names
from rltemp.service.routes import health_routes, inference_routes, list_routes, model_routes, refusals
from rltemp.service.tokens import allowed

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
        self.metrics = Metrics()
        self._token = token
        self._log_requests = log_requests
        self.app = self._application(routers)
        self._limited = LimitedRequests(self._authorized, limits or Limits())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; count it, and log it where that is wanted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._limited(scope, receive, watched)
        except SlowReaderError:
            self._refused(Refusal(status, "the answer was not taken in time", "too_slow"), scope)
        except Exception:  # answered by FastAPI as `_failed` says
            LOGGER.exception("internal error", extra={"path": scope["path"][:200]})
        route = getattr(scope.get("route"), "name", "other")
        self.metrics.requests.labels(route, self._model(scope), status).inc()
        if self._log_requests:
            seconds = round(time.perf_counter() - started, 6)
            asked = {"method": scope["method"], "path": scope["path"][:300]}
            event("request", **asked, code=status, seconds=seconds, error=scope.get("refusal", ""))

    async def _authorized(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token is None or _OPEN.fullmatch(scope["path"]) or allowed(scope["headers"], self._token):
            await self.app(scope, receive, send)
        else:
            refusal = Refusal(401, "not authorized", "unauthorized", {"www-authenticate": "Bearer"})
            await self._answer(refusal, scope)(scope, receive, send)

    def _application(self, routers: Sequence[APIRouter]) -> FastAPI:
        app = FastAPI(
            title="rltemp",
            version=rltemp.__version__,
            description="Temperatures for knowledge distillation: Open Inference Protocol v2 with binary tensors.",
            redoc_url=None,
            redirect_slashes=False,
        )
        # The token is checked before the routes are; here it is documented.
        closed = [] if self._token is None else [Security(HTTPBearer(auto_error=False, scheme_name="token"))]
        own = (  # what is asked most comes first
            inference_routes(self.repository, self.metrics),
            model_routes(self.repository, bool(routers)),
            list_routes(self.repository, self.metrics),
        )
        for router in (*own, *routers):
            app.include_router(router, dependencies=closed, responses=refusals(401) if closed else {})
        app.include_router(health_routes(self.repository))
        app.add_exception_handler(Refusal, self._on_refusal)
        app.add_exception_handler(HTTPException, self._on_http_error)
        app.add_exception_handler(ClientDisconnect, _gone)
        app.add_exception_handler(Exception, _failed)
        return app

    async def _on_refusal(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return self._answer(error, request.scope)

    async def _on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer what Starlette itself refuses: an unknown path, a method that is not allowed."""
        assert isinstance(error, HTTPException)
        known = {404: "no such route; see /docs", 405: f"{request.method} is not allowed here"}
        message = known.get(error.status_code, str(error.detail))
        return self._answer(Refusal(error.status_code, message, "unknown_route", error.headers), request.scope)

    def _answer(self, refusal: Refusal, scope: Scope) -> Response:
        self._refused(refusal, scope)
        refusal.__traceback__ = None  # its frames would keep the request until the next collection
        return error_response(refusal.status, refusal.message, refusal.headers)

    def _refused(self, refusal: Refusal, scope: Scope) -> None:
        self.metrics.refused(refusal)
        scope["refusal"] = refusal.message[:300]

    def _model(self, scope: Scope) -> str:
        """A model's name where it is one of few, for the metrics."""
        name = scope.get("path_params", {}).get("model", "")
        if not name or name in self.repository.policies():
            return str(name)
        kind = split_spec(name)[0]
        return kind if kind in rule_names() else "other"


async def _gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left before its request was there. 499 is what nginx logs then."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(500, "internal error")
