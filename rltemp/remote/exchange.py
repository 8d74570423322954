"""One HTTP request and its answer within a total deadline, whatever the other side does.

A socket's timeout is for one operation: a server that sends a byte now and then, or a name lookup that hangs, makes it
wait for ever. So an exchange runs on a thread of its own, with a connection that is kept, and the caller waits for as
long as the deadline says and no longer: then the connection is shut, which ends the thread, or the thread is left
behind, of which there can be a few at most.

Nothing is tried twice, redirects are not followed, and no proxy is taken from the environment. Certificates of
`https://` are checked against the system's (or those that `SSL_CERT_FILE` names).
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from collections.abc import Mapping

from rltemp.errors import ExchangeFailedError
from rltemp.remote.addresses import Server
from rltemp.remote.connection import Answer, Job, Worker

MAX_ANSWER = 16 * 2**20
"""Bytes of an answer's body; an exchange may allow fewer."""
MOST_STUCK = 4
"""Threads that are left behind at the same time; while there are so many, nothing more is asked."""


class Exchange:
    """Asks one server, one request at a time; threads that share it wait for each other, within their deadlines.

    Args:
        url: `http://HOST:PORT`, with or without a path that comes before every other.
        token: Sent as a bearer's, to this server alone.
        most: Bytes of an answer's body that are read.

    Raises:
        BadInputError: Where the URL cannot be used.
    """

    def __init__(self, url: str, token: str | None = None, *, most: int = MAX_ANSWER) -> None:
        self.server = Server.of(url)
        self._context = ssl.create_default_context() if self.server.secure else None
        self._authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
        self._most = most
        self._worker: Worker | None = None
        self._stuck: list[Worker] = []
        self._begin()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float,
    ) -> Answer:
        """Send a request and wait for the whole answer.

        Args:
            method: GET or POST.
            path: From the server's root, quoted.
            body: Of a POST.
            headers: Beside those that every request has.
            deadline: Seconds, for everything: looking the name up, connecting, sending, receiving.

        Returns:
            The answer, whatever its status is.

        Raises:
            ExchangeFailedError: Where there is none in time.
        """
        ends = time.monotonic() + deadline
        if self._process != os.getpid():  # a fork has none of the threads, and the connection is its parent's
            self._begin()
        job = Job(method, self._request(method, path, body, headers or {}), ends)
        late = f"no answer in {1000 * deadline:.0f} ms"
        if not self._turn.acquire(timeout=deadline):
            raise ExchangeFailedError(late)
        try:
            worker = self._ready_worker()
            worker.jobs.put(job)
            if not job.done.acquire(timeout=max(ends - time.monotonic(), 0.0)):
                self._abandon(worker)
                raise ExchangeFailedError(late)
        finally:
            self._turn.release()
        if job.answer is None:
            raise ExchangeFailedError(job.failure)
        return job.answer

    def close(self) -> None:
        """Shut the connection and end the thread; a later `ask` begins anew."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # it may have failed in its first line
            self.close()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._worker, self._stuck = None, []

    def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The whole request, to be sent in one write."""
        length = f"Content-Length: {len(body)}\r\n" if method != "GET" else ""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        target = f"{self.server.prefix}{path}"
        for text in (target, *headers, *headers.values()):
            if not text.isascii() or not text.isprintable() or (" " in text and text is target):
                raise ValueError(f"{text!r} cannot stand in a request: ASCII alone, paths quoted")
        head = f"{method} {target} HTTP/1.1\r\nHost: {self.server.authority}\r\nAccept-Encoding: identity\r\n"
        return f"{head}{self._authorization}{more}{length}\r\n".encode("ascii") + body

    def _ready_worker(self) -> Worker:
        if (worker := self._worker) is None:
            self._stuck = [worker for worker in self._stuck if worker.thread.is_alive()]
            if len(self._stuck) >= MOST_STUCK:
                raise ExchangeFailedError(f"{MOST_STUCK} earlier requests still hang, in a name lookup as it seems")
            self._worker = worker = Worker(self.server, self._context, self._most)
        return worker

    def _abandon(self, worker: Worker) -> None:
        worker.end()
        self._stuck.append(worker)
        self._worker = None
