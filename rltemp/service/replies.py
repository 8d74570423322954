"""Answers as ASGI messages, without a framework."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable

from rltemp.service.bodies import Message
from rltemp.service.refusals import Refusal

Send = Callable[[Message], Awaitable[None]]


async def reply(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole answer."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def failure(send: Send, refusal: Refusal) -> None:
    """Send why a request is refused."""
    headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await reply(send, refusal.status, failure_body(refusal.message), b"application/json", headers)


def failure_body(message: str) -> bytes:
    """The body of every answer that is an error; ASCII, whatever the message has.

    >>> failure_body("no")
    b'{"error": "no"}'
    """
    return json.dumps({"error": message}).encode()
