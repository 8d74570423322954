"""The controller service as a process of its own, for tests that ask it over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from support.processes import Process, start

READY_SECONDS = 60.0


@dataclass
class Served:
    """A service that is ready.

    Args:
        url: As `http://127.0.0.1:12345`.
        process: The process, to be sent signals; `process.finish()` gives its exit code and what it printed.
    """

    url: str
    process: Process

    @property
    def address(self) -> str:
        """Host and port, as `tritonclient` wants them."""
        return urlsplit(self.url).netloc

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers by lower-case name, body."""
        connection = http.client.HTTPConnection(self.address, timeout=30)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@contextlib.contextmanager
def serving(*words: object, **environment: str) -> Iterator[Served]:
    """Run `rltemp serve` with these words on a free port, wait until it is ready, and kill it at the end."""
    process = start("serve", "--port", "0", *words, **environment)
    try:
        yield Served(_url(process), process)
    finally:
        process.send(signal.SIGCONT)
        process.send(signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            process.finish(30)


def _url(process: Process) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        out = process.read("out")
        if " at http://" in out and out.endswith("\n"):
            url = out.rsplit(" at ", 1)[1].strip()
            if _answers(url):
                return url
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError(f"the service did not start: {process.finish(1)}")


def _answers(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
