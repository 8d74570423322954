"""What the service logs: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

LOGGER = logging.getLogger("rltemp.service")


def to_stderr() -> None:
    """Send everything that this process logs from here on to stderr, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    renamed = {"asctime": "time", "levelname": "level", "message": "event"}
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=renamed))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    ours = logging.getLogger("rltemp")
    ours.handlers, ours.propagate = [], True  # in place of the lines that the command line prints
    LOGGER.setLevel(logging.INFO)
    # It logs every malformed request of a stranger, and connections that we close with a traceback.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def event(name: str, **fields: object) -> None:
    """Log an event."""
    LOGGER.info(name, extra=fields)
