"""What the routes of all parts of the service share: paths, their parameters, and the errors of the schema."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request
from fastapi.responses import Response

from rltemp.service import schema

MODEL = "/v2/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"
BINARY = "application/octet-stream"

_MODELS = ["universal", "dtkd", "fixed:4"]
Name = Annotated[str, Path(description="A policy's name, or a rule as in `rltemp methods`.", examples=_MODELS)]
Version = Annotated[str, Path(description="A version; without one, the newest.", examples=["1"])]

BYTES = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
_TEXTS = {
    400: "The content cannot be used.",
    401: "The token is missing or wrong.",
    404: "There is no such model or version.",
    405: "The method is not allowed.",
    409: "Another content came before for the same run and look.",
    408: "The request took too long to come.",
    413: "The request is too long.",
    415: "The body's type is not read.",
    422: "The body does not follow the schema.",
    429: "Too many requests of one client.",
    503: "The service is busy.",
}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its schema."""
    return {code: {"model": schema.Failure, "description": _TEXTS[code]} for code in codes}


def file_response(request: Request, data: bytes, sha256: str, version: str) -> Response:
    """A policy file's bytes, its ETag its SHA-256; 304 without them where `If-None-Match` names it."""
    headers = {"etag": f'"{sha256}"', "rltemp-model-version": version}
    if _matches(request.headers.get("if-none-match", ""), sha256):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=BINARY, headers=headers)


def _matches(header: str, sha256: str) -> bool:
    """Tell whether `If-None-Match` names this file."""
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return sha256 in tags or tags == ["*"]
