"""What FastAPI does not answer, as one JSON object with a sentence: `{"error": ...}`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from rltemp.service.refusals import Refusal
from rltemp.service.replies import failure_body


def answer_failures(app: FastAPI) -> None:
    """Answer every error of an application in this way."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _failed(request, error)


async def _http(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, a method that is not allowed."""
    assert isinstance(error, HTTPException)
    known = {404: "no such route; see /docs", 405: f"{request.method} is not allowed here"}
    message = known.get(error.status_code, str(error.detail))
    return _failed(request, Refusal(error.status_code, message, "unknown_route", error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:80]
    return _failed(request, Refusal(422, f"{where}: {first['msg'][:200]}", "schema"))


def _failed(request: Request, refusal: Refusal) -> Response:
    request.scope["state"]["refuse"] = refusal.with_traceback(None)
    body = failure_body(refusal.message)
    return Response(body, refusal.status, refusal.headers, "application/json")
