"""A request's body off the stream; how long it may take to come is the host's affair (`rltemp.service.connection`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rltemp.service.refusals import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Disconnected(Exception):  # noqa: N818  # an event, not an error
    """The client left before its request was there."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Args:
        receive: Of the ASGI connection.
        limit: Of the host, or a smaller one of this route.

    Raises:
        Refusal: 413 where it is longer; the rest is not read.
        Disconnected: Where the client left.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Refusal(413, f"the body is larger than {limit:,} bytes", "too_large")
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)
