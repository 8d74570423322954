"""A connection that is kept, on a thread of its own: requests go in, answers or reasons come out."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from queue import SimpleQueue

from rltemp.errors import ExchangeFailedError, RequestRefusedError, one_line
from rltemp.remote.addresses import Server

LATER = (408, 425, 429)
"""Of the answers that say that the request was a mistake (4xx) those that only ask to come back."""

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


@dataclass(frozen=True)
class Answer:
    """What a server answered: status, headers by their names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def checked(self, *allowed: int) -> Answer:
        """The answer itself, where its status is 200 or one that is allowed beside it.

        Raises:
            RequestRefusedError: With 4xx, but for 408, 425 and 429.
            ExchangeFailedError: With any other status.
        """
        if self.status in (200, *allowed):
            return self
        said = one_line(self.body[:300].decode("utf-8", "replace"))
        message = f"it answers {self.status}{': ' if said else ''}{said}"
        if 400 <= self.status < 500 and self.status not in LATER:
            raise RequestRefusedError(message)
        raise ExchangeFailedError(message)


@dataclass
class Job:
    """A request on its way: `done` is free once `answer` or `failure` is there."""

    method: str
    request: bytes
    ends: float
    answer: Answer | None = None
    failure: str = "it ended"
    done: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.done.acquire()


class Worker:
    """A thread with a connection, which does what comes into `jobs` until it is told to end.

    Args:
        server: Where it connects to.
        context: For `https://`.
        most: Bytes of an answer's body that are read.
    """

    def __init__(self, server: Server, context: ssl.SSLContext | None, most: int) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._server, self._context, self._most = server, context, most
        self._socket: socket.socket | None = None
        self._ended = False
        self.thread = threading.Thread(target=self._run, name="rltemp-exchange", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """End the thread; what it waits for on its connection ends now, a name lookup when it does."""
        self._ended = True
        self.jobs.put(None)
        if (connection := self._socket) is not None:
            with contextlib.suppress(OSError):
                # Not the method of an SSL socket, which also forgets the state that the thread reads through.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._ended and (job := self.jobs.get()) is not None:
            try:
                job.answer = self._exchange(job)
            except TimeoutError:
                job.failure = "it does not answer in time"
            except (OSError, HTTPException, ValueError, ExchangeFailedError) as error:
                job.failure = _reason(error)
            except Exception as error:  # whatever a hostile answer makes of the parser: no reason to end a run
                job.failure = f"its answer cannot be read ({type(error).__name__})"
            if job.answer is None:
                self._drop()
            job.done.release()
        self._drop()

    def _exchange(self, job: Job) -> Answer:
        if self._socket is None or not _silent(self._socket):
            self._drop()
            self._connect(job.ends)
        connection = self._socket
        assert connection is not None
        connection.settimeout(_left(job.ends))
        connection.sendall(job.request)
        response = HTTPResponse(connection, method=job.method)
        try:
            response.begin()
            answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, self._body(response))
        finally:
            response.close()
        if response.will_close:
            self._drop()
        return answer

    def _body(self, response: HTTPResponse) -> bytes:
        body = response.read(self._most + 1)
        if len(body) > self._most or (response.length or 0) > self._most:
            raise ExchangeFailedError(f"its answer is over {self._most} bytes")
        if response.length:
            raise ExchangeFailedError(f"its answer ends {response.length} bytes early")
        return body

    def _connect(self, ends: float) -> None:
        found = socket.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_STREAM)
        failed: OSError = OSError("its name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            # From here on `end` can shut it; an address that swallows everything leaves time for the next.
            self._socket = connection = socket.socket(family, kind, protocol)
            connection.settimeout(_left(ends) / (len(found) - index))
            try:
                connection.connect(address)
                self._prepare(connection, ends)
                return
            except OSError as error:
                failed = error
                self._drop()
        raise failed

    def _prepare(self, connection: socket.socket, ends: float) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            connection.settimeout(_left(ends))
            wrapped = self._context.wrap_socket(
                connection, server_hostname=self._server.host, do_handshake_on_connect=False
            )
            self._socket = wrapped  # before the handshake: wrapping took the plain socket's descriptor away
            wrapped.do_handshake()

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()


def _silent(connection: socket.socket) -> bool:
    """Whether there is nothing to read: neither the connection's end nor something that nobody asked for."""
    with _Selector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return not selector.select(0)


def _left(ends: float) -> float:
    """Seconds until `ends`; an operation that begins too late fails at once."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _reason(error: Exception) -> str:
    """What went wrong, in a few words of ours: the error's own may hold whatever the server sent."""
    if isinstance(error, ExchangeFailedError):
        return str(error)
    if isinstance(error, ConnectionRefusedError):
        return "it refuses the connection"
    if isinstance(error, ConnectionError):  # RemoteDisconnected among them
        return "it closes the connection"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ssl.SSLError):
        return one_line(f"no secure connection ({error.reason or error})"[:200])
    if isinstance(error, OSError):
        return one_line(error.strerror or str(error))
    return f"what it sends is no answer in HTTP ({type(error).__name__})"
