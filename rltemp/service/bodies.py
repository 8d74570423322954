"""A request's body off the stream, of bounded size and within a bounded time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio

from rltemp.service.refusals import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Disconnected(Exception):  # noqa: N818  # an event, not an error
    """The client left before its request was there."""


async def read_body(receive: Receive, headers: Iterable[tuple[bytes, bytes]], limit: int, deadline: float) -> bytes:
    """Read a body.

    Args:
        receive: Of the ASGI connection.
        headers: Of the request, names in lower case.
        limit: Bytes, at most.
        deadline: Seconds, for all of it.

    Raises:
        Refusal: 413 where it is longer, 408 where it takes longer.
        Disconnected: Where the client left.
    """
    for name, value in headers:
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > limit):
            raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(deadline):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)
    raise Refusal(408, f"the body did not come within {deadline:g} s", "too_slow", {"connection": "close"})


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is longer than {limit} bytes", "too_large", {"connection": "close"})
