"""The server process: an ASGI application behind sockets that hold every client to `Limits`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from rltemp.errors import BadInputError
from rltemp.service.limits import Limits


def serve(app: Any, host: str, port: int, *, limits: Limits, on_ready: Callable[[str], None]) -> None:
    """Serve an application until SIGINT or SIGTERM, then finish what is under way.

    Args:
        app: An ASGI 3 application.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        limits: What clients are held to.
        on_ready: Called with the server's URL once it listens.

    Raises:
        BadInputError: Where the address cannot be listened on.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=int(limits.shutdown_seconds),
    )
    on_ready(url(listener))
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInputError(f"cannot listen on {host}:{port}: {error}. Give another --host or --port") from error
    return listener


def url(listener: socket.socket) -> str:
    """The address of a listening socket, as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
