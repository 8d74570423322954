"""What the service logs: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import sys
import time

from pythonjsonlogger.json import JsonFormatter

LOGGER = logging.getLogger("rltemp.service")
REPEATED = 1.0
"""Seconds within which the same kind of refusal is not logged again, but counted."""


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


class Seldom:
    """Tells for each kind of event whether it is time to log it, and how many were passed over since the last time."""

    def __init__(self, seconds: float = REPEATED) -> None:
        self._seconds = seconds
        self._last: dict[str, float] = {}
        self._passed: dict[str, int] = {}

    def due(self, kind: str) -> int | None:
        """How many of this kind came since the last that was logged; None where it is too early for another."""
        now = time.monotonic()
        if now - self._last.get(kind, -self._seconds) < self._seconds:
            self._passed[kind] = self._passed.get(kind, 0) + 1
            return None
        self._last[kind] = now
        return self._passed.pop(kind, 0)
