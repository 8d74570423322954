"""Why a request is not answered: a status code, a sentence for its sender, and a word for the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response


class Refusal(Exception):  # noqa: N818  # an answer, not an error of the service
    """A request that is answered with an error.

    Args:
        status: HTTP status code, 4xx or 503.
        message: What was wrong, where, and what to send; one line that tells nothing of the service's own state.
        reason: Counted in the metrics; one of a dozen words.
        headers: Of the answer, beside its own.
        values: How many numbers of the request were not finite.
    """

    def __init__(
        self, status: int, message: str, reason: str, headers: Mapping[str, str] | None = None, values: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.headers = dict(headers or {})
        self.values = values


def wrong_content(message: str) -> Refusal:
    """Refuse a request that follows the protocol, but whose numbers, shapes or names cannot be used: 400."""
    return Refusal(400, message, "content")


def wrong_schema(message: str) -> Refusal:
    """Refuse a request that does not follow the protocol: 422."""
    return Refusal(422, message, "schema")


def busy(message: str, seconds: int = 1) -> Refusal:
    """Refuse a request that may come again after some seconds: 503."""
    return Refusal(503, message, "overloaded", {"retry-after": str(seconds)})


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer `{"error": message}`, in ASCII whatever the message holds.

    >>> error_response(404, "no").body
    b'{"error": "no"}'
    """
    return Response(json.dumps({"error": message}), status, headers, "application/json")
