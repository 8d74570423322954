"""The server process: uvicorn on asyncio's own loop, with h11, which bounds incomplete heads.

Under uvloop, 64 clients at once are not served alike (docs/experiments.md).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from rltemp.errors import BadInputError
from rltemp.service.limits import Limits


def serve(app: ASGIApp, host: str, port: int, *, limits: Limits, on_ready: Callable[[str], None]) -> None:
    """Serve an application until SIGINT or SIGTERM, then finish what is under way.

    uvicorn raises the signal again after the last answer, for whoever handles it outside.

    Args:
        app: An ASGI 3 application, which holds its clients to `limits.LimitedRequests`.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        limits: What uvicorn holds clients to: heads, connections, idle ones.
        on_ready: Called with the server's URL when clients can connect.

    Raises:
        BadInputError: Where the address cannot be listened on.
    """
    listener = _listen(host, port, limits)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=1024,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.shutdown_seconds,
        h11_max_incomplete_event_size=limits.head_bytes,
    )
    on_ready(_url(listener))
    uvicorn.Server(config).run(sockets=[listener])


def _url(listener: socket.socket) -> str:
    """The address of a listening socket, as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int, limits: Limits) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on, and an answer's body waits 40 ms for the head's receipt.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: its connections end where a client acknowledges nothing
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limits.answer_seconds))
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInputError(f"cannot listen on {host}:{port}: {error}. Give another --host or --port") from error
    return listener
