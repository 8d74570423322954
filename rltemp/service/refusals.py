"""Why a request is not answered: a status code, a sentence for its sender and a word for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Reason = Literal[
    "syntax",
    "schema",
    "content",
    "non_finite",
    "unknown_model",
    "conflict",
    "unknown_route",
    "unauthorized",
    "media_type",
    "too_large",
    "too_slow",
    "overloaded",
]


class Refusal(Exception):  # noqa: N818  # an answer, not an error of the service
    """A request that is answered with an error.

    Args:
        status: HTTP status code, 4xx or 503.
        message: What was wrong, where, and what to send; one line without anything of the service's own state.
        reason: Counted in the metrics.
        headers: Of the answer, beside its own.
        values: How many numbers of the request were not finite.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: Reason,
        headers: Mapping[str, str] | None = None,
        values: int = 0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason: Reason = reason
        self.headers = dict(headers or {})
        self.values = values


def wrong_content(message: str) -> Refusal:
    """Of a request that follows the protocol, with numbers, shapes or names that cannot be used: 400."""
    return Refusal(400, message, "content")


def wrong_schema(message: str) -> Refusal:
    """Of a request that does not follow the protocol: 422."""
    return Refusal(422, message, "schema")
