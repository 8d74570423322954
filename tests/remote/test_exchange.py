"""An exchange is over within its deadline whatever the server does, and takes nothing but a whole answer."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from http.client import HTTPResponse
from pathlib import Path

import pytest
from support.raw_server import Behaviour, RawServer, answers, closes_after, drips, floods, hangs, http, late

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError
from rltemp.remote import connection
from rltemp.remote.addresses import Server, read_token
from rltemp.remote.connection import Answer
from rltemp.remote.exchange import MOST_STUCK, Exchange

DEADLINE, MARGIN = 0.1, 0.08  # the margin is for a busy machine


def failure(url: str, deadline: float = DEADLINE, most: int = 10**6) -> tuple[str, float]:
    """Why an exchange failed, and how long that took."""
    exchange = Exchange(url, most=most)
    began = time.monotonic()
    with pytest.raises(ExchangeFailedError) as failed:
        exchange.ask("POST", "/x", b"12345", deadline=deadline)
    took = time.monotonic() - began
    exchange.close()
    return str(failed.value), took


OK = http(b"fine", "200 OK", "ETag: abc")
BAD: dict[str, tuple[Behaviour, str]] = {
    "hangs": (hangs, "no answer in 100 ms|does not answer in time"),
    "drips its head": (drips(OK, 0.01), "no answer in 100 ms"),
    "drips its body": (drips(http(b"x" * 100), 0.002), "no answer in 100 ms"),
    "is late": (late(0.3, answers(OK)), "no answer in 100 ms|does not answer in time"),
    "sends garbage": (answers(b"\x00\xff\r\n\r\n" * 9), "no answer in HTTP"),
    "speaks another protocol": (closes_after(b"SSH-2.0-server\r\n"), "no answer in HTTP"),
    "claims more than it sends": (closes_after(http(b"fine", length=9)), "ends 5 bytes early"),
    "closes in the head": (closes_after(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX"), "ends 4 bytes early"),
    "closes at once": (closes_after(b""), "closes the connection"),
    "claims too much": (answers(http(b"fine", length=10**12)), "over 1000000 bytes|no answer in 100 ms"),
    "never ends": (floods(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), "over 1000000 bytes"),
    "never ends its chunks": (
        floods(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        "over 1000000 bytes",
    ),
    "never ends its head": (floods(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "no answer in HTTP"),
    "never says more than continue": (floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "no answer in 100 ms"),
    "lies about a chunk": (
        answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"),
        "no answer in HTTP",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_costs_no_more_than_the_deadline_and_is_named(name: str) -> None:
    behaviour, reason = BAD[name]
    with RawServer(behaviour) as server:
        said, took = failure(server.url)
    assert re.search(reason, said), said
    assert took < DEADLINE + MARGIN


def test_a_refused_connection_an_unknown_name_and_silence_on_connecting_are_named() -> None:
    with RawServer() as server:
        pass
    said, took = failure(server.url)
    assert said == "it refuses the connection"
    assert took < DEADLINE
    with socket.socket() as full:  # nobody accepts, and what waits to be accepted is full: a SYN is dropped
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        said, took = failure(f"http://127.0.0.1:{full.getsockname()[1]}")
        assert "in time" in said or "no answer" in said
        assert took < DEADLINE + MARGIN
        for each in waiting:
            each.close()


def test_a_good_answer_comes_over_one_connection_with_one_write_and_nothing_cached() -> None:
    with RawServer(answers(OK)) as server:
        exchange = Exchange(server.url + "/prefix/", "s3cret")
        for _ in range(5):
            answer = exchange.ask("POST", "/v2/x", b"body", {"X-One": "1"}, deadline=1)
        got = exchange.ask("GET", "/v2", deadline=1)
        exchange.close()
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"fine", "abc")
    assert got.body == b"fine"
    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /prefix/v2/x HTTP/1.1"
    assert {b"X-One: 1", b"Authorization: Bearer s3cret", b"Content-Length: 4"} <= set(head.split(b"\r\n"))
    assert body == b"body"
    assert b"Content-Length" not in server.requests[-1]


@pytest.mark.parametrize("left_over", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold"])
def test_a_connection_that_was_closed_or_holds_words_nobody_asked_for_is_not_used_again(left_over: bytes) -> None:
    with RawServer(answers(OK + left_over)) as server:
        exchange = Exchange(server.url)
        exchange.ask("GET", "/", deadline=1)
        server.behaviour = answers(OK)
        if not left_over:
            server.hang_up()
        time.sleep(0.02)
        assert exchange.ask("GET", "/", deadline=1).body == b"fine"
        exchange.close()
        assert server.connections == (2 if not left_over else server.connections)


def test_after_a_failure_the_next_exchange_is_on_a_new_connection_and_cannot_get_the_old_answer() -> None:
    with RawServer(late(0.15, answers(http(b"old")))) as server:
        exchange = Exchange(server.url)
        with pytest.raises(ExchangeFailedError):
            exchange.ask("GET", "/", deadline=0.05)
        server.behaviour = answers(http(b"new"))
        time.sleep(0.2)
        assert exchange.ask("GET", "/", deadline=1).body == b"new"
        exchange.close()


def test_a_redirect_is_an_answer_and_nobody_follows_it() -> None:
    with RawServer() as other, RawServer() as server:
        server.behaviour = answers(http(b"", "302 Found", f"Location: {other.url}/x"))
        exchange = Exchange(server.url, "s3cret")
        answer = exchange.ask("GET", "/", deadline=1)
        exchange.close()
        assert answer.status == 302
        with pytest.raises(ExchangeFailedError, match="302"):
            answer.checked()
        assert other.connections == 0


@pytest.mark.parametrize(("status", "error"), [(400, RequestRefusedError), (404, RequestRefusedError)])
def test_4xx_is_a_mistake_and_anything_else_that_is_not_200_an_outage(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"it answers {status}: what \\?was"):
        Answer(status, {}, b"what \x1bwas").checked()
    for other in (408, 425, 429, 500, 503, 204, 304):
        with pytest.raises(ExchangeFailedError):
            Answer(other, {}, b"").checked()
    assert Answer(304, {}, b"").checked(304).status == 304


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer() as proxy, RawServer(answers(OK)) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        exchange = Exchange(server.url)
        assert exchange.ask("GET", "/", deadline=1).body == b"fine"
        exchange.close()
        assert proxy.connections == 0


def test_a_name_lookup_that_hangs_costs_the_deadline_and_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends a lookup: its thread is left behind, but only a few are."""
    free = threading.Event()
    monkeypatch.setattr(connection.socket, "getaddrinfo", lambda *_, **__: free.wait(30) and [])
    exchange, before = Exchange("http://name.invalid"), set(threading.enumerate())
    for count in range(MOST_STUCK + 3):
        began = time.monotonic()
        with pytest.raises(ExchangeFailedError, match="no answer" if count < MOST_STUCK else "earlier requests"):
            exchange.ask("GET", "/", deadline=0.02)
        assert time.monotonic() - began < 0.02 + MARGIN
    assert len(set(threading.enumerate()) - before) == MOST_STUCK
    free.set()
    time.sleep(0.1)
    with pytest.raises(ExchangeFailedError, match="no address"):
        exchange.ask("GET", "/", deadline=1)
    exchange.close()


def test_threads_of_failed_and_forgotten_exchanges_end() -> None:
    before = threading.active_count()
    with RawServer() as server:
        for _ in range(5):
            failure(server.url, deadline=0.01)
        forgotten = Exchange(server.url)
        with pytest.raises(ExchangeFailedError):
            forgotten.ask("GET", "/", deadline=0.01)
        del forgotten
        gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_threads_that_share_an_exchange_wait_for_each_other_within_their_deadlines() -> None:
    with RawServer(late(0.1, answers(OK))) as server:
        exchange = Exchange(server.url)
        other = threading.Thread(target=lambda: exchange.ask("GET", "/", deadline=1))
        other.start()
        time.sleep(0.02)
        with pytest.raises(ExchangeFailedError, match="no answer in 20 ms"):
            exchange.ask("GET", "/", deadline=0.02)
        other.join()
        assert exchange.ask("GET", "/", deadline=1).body == b"fine"
        exchange.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_asks_over_a_connection_of_its_own() -> None:
    with RawServer(answers(OK)) as server:
        exchange = Exchange(server.url)
        exchange.ask("GET", "/", deadline=1)
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = 0 if exchange.ask("GET", "/", deadline=2).body == b"fine" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        exchange.ask("GET", "/", deadline=1)
        exchange.close()
        assert server.connections == 2


def test_an_interpreter_ends_while_exchanges_and_a_probe_hang() -> None:
    with RawServer() as server:
        program = f"""
import time
from rltemp.remote.breaker import Breaker, Patience
from rltemp.errors import ExchangeFailedError
from rltemp.remote.exchange import Exchange
breaker = Breaker(lambda: time.sleep(100) or 1.0, Patience(deadline=0.05, shortest=0.001))
breaker.open("away")
kept = [Exchange("{server.url}") for _ in range(3)]
for exchange in kept:
    try:
        exchange.ask("GET", "/", deadline=0.05)
    except ExchangeFailedError:
        print("late")
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "late\n" * 3, "")


def test_the_thread_costs_tens_of_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Against the same bytes over the same kind of socket in the caller's own thread."""
    with RawServer(answers(OK)) as server:
        exchange = Exchange(server.url)
        plain = socket.create_connection(("127.0.0.1", server.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = exchange._request("GET", "/", b"", {})
        times: dict[str, list[float]] = {"own thread": [], "plain": []}
        for _ in range(300):
            began = time.perf_counter()
            exchange.ask("GET", "/", deadline=1)
            between = time.perf_counter()
            plain.sendall(request)
            with contextlib.closing(HTTPResponse(plain)) as response:
                response.begin()
                response.read()
            times["own thread"].append(between - began)
            times["plain"].append(time.perf_counter() - between)
        exchange.close()
        plain.close()
    medians = {name: 1e6 * statistics.median(found) for name, found in times.items()}
    with capsys.disabled():
        print(f"\n  an exchange {medians['own thread']:.0f} us, without the thread {medians['plain']:.0f} us")
    assert medians["own thread"] - medians["plain"] < 1500  # on a busy machine; 45 on an idle one


def test_urls_that_cannot_be_asked_are_refused_in_a_line_and_no_password_is_shown() -> None:
    for url in ("", "127.0.0.1:8000", "ftp://host", "http://", "http://a b", "http://h:99999", "http://h?x=1",
                "http://h#x", "http://h/\r\nX: y", "file:///etc/passwd", "http://[::1", "http://h\n"):  # fmt: skip
        with pytest.raises(BadInputError) as error:
            Server.of(url)
        assert "\n" not in str(error.value)
    with pytest.raises(BadInputError) as error:
        Exchange("http://user:hunter2@host")
    assert "hunter2" not in str(error.value)
    assert Server.of("https://h.example/a/") == Server(True, "h.example", 443, "/a")
    hosts = ("localhost", "127.0.0.1", "127.9.9.9", "[::1]", "example.org", "10.0.0.1")
    assert [Server.of(f"http://{host}").loopback for host in hosts] == [True, True, True, True, False, False]


def test_a_header_or_path_with_a_line_of_its_own_is_never_sent() -> None:
    exchange = Exchange("http://127.0.0.1:9")
    for path in ("/a b", "/a\r\nX: y", "/ä"):
        with pytest.raises(ValueError, match="paths quoted"):
            exchange.ask("GET", path, deadline=1)
    with pytest.raises(ValueError, match="ASCII"):
        exchange.ask("GET", "/", headers={"X": "y\r\nZ: z"}, deadline=1)


def test_a_token_is_one_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret-Token_1\n")
    assert read_token(file) == "s3cret-Token_1"
    for bad in (b"", b"\n", b"two words", b"two\nlines", "schlüssel".encode(), b"x" * 5000, b"a\x00b"):
        file.write_bytes(bad)
        with pytest.raises(BadInputError) as error:
            read_token(file)
        assert "words" not in str(error.value)
    with pytest.raises(BadInputError, match="cannot read the token file"):
        read_token(tmp_path / "missing")
