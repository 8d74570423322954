"""The server's limits on size and time, without the controller: the application here answers with what it was sent."""

from __future__ import annotations

import asyncio
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import Answer, Service, answers, closed_within, read_all, request, served

SMALL = 300_000
"""Bytes of a body that the server here takes."""
BIG = b"x" * 2**23
SHORT: dict[str, Any] = {
    "request_bytes": SMALL,
    "bytes_in_flight": SMALL,
    "head_seconds": 0.6,
    "body_seconds": 0.6,
    "write_seconds": 0.6,
    "idle_seconds": 0.6,
    "connections": 40,
}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body; `/big` with 8 MiB, `/slow` after a second."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    message = await receive()
    assert not message["more_body"], "the application is called when the body is whole"
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = BIG if scope["path"] == "/big" else message["body"]
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def echoes() -> Iterator[Service]:
    with served(echo, **SHORT) as service:
        yield service


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def post(**headers: str) -> bytes:
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return request("POST", "/", headers=given)


def statuses(found: list[Answer]) -> list[int]:
    return [answer.status for answer in found]


def test_a_body_arrives_whole_however_it_is_cut(echoes: Service) -> None:
    body = bytes(range(256)) * 1000
    whole = request("POST", "/", body, close=True)
    pieces = [whole[start : start + 50_000] for start in range(0, len(whole), 50_000)]
    (answer,) = echoes.ask(*pieces, pause=0.02)
    assert answer.body == body
    (answer,) = echoes.ask(post(Transfer_Encoding="chunked", Connection="close"), chunked(b"ab", b"cd", b""))
    assert answer.body == b"abcd"


def test_an_answer_is_sent_without_waiting_for_the_clients_receipts(echoes: Service) -> None:
    times = []
    with echoes.connect() as client:
        for _ in range(20):
            begin = time.perf_counter()
            client.sendall(request("POST", "/", b"abc"))
            while not client.recv(2**16).endswith(b"abc"):
                pass
            times.append(time.perf_counter() - begin)
    assert statistics.median(times) < 0.03, "40 ms are those of a delayed acknowledgement"


def test_a_connection_carries_several_requests_also_ahead_of_their_answers(echoes: Service) -> None:
    found = echoes.ask(b"".join(request("POST", "/", b"%d" % number, close=number == 9) for number in range(10)))
    assert [answer.body for answer in found] == [b"%d" % number for number in range(10)]
    flood = b"".join(request("POST", "/", b"a") for _ in range(1000))
    assert len(echoes.ask(flood)) < 1000


def test_a_declared_body_beyond_the_limit_is_refused_before_it_is_sent(echoes: Service) -> None:
    begin = time.monotonic()
    (answer,) = echoes.ask(post(Content_Length=str(200 * 2**20)))
    assert answer.status == 413
    assert f"{SMALL:,}" in answer.error()
    assert answer.headers["connection"] == "close"
    assert time.monotonic() - begin < 0.5


def test_a_client_that_sends_it_all_the_same_can_read_the_refusal(echoes: Service) -> None:
    (answer,) = echoes.ask(request("POST", "/", b"x" * (20 * 2**20)))
    assert answer.status == 413


def test_a_streamed_body_is_refused_as_soon_as_it_is_too_large(echoes: Service) -> None:
    with echoes.connect() as client:
        client.sendall(post(Transfer_Encoding="chunked"))
        for _ in range(SMALL // 1000 + 1):
            client.sendall(chunked(b"x" * 1000))
        (answer,) = answers(read_all(client))
    assert answer.status == 413


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nX: ", b"b"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", b"b"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"b")),
        (request("POST", "/", b"done"), b""),
        (request("POST", "/", b"done"), b"\r\n"),
        (request("POST", "/", b"done") + b"POST / HT", b""),
    ],
    ids=[
        "sends nothing",
        "sends empty lines",
        "drips a header",
        "drips a body",
        "streams without end",
        "stays idle",
        "stays idle with empty lines",
        "stops in a second head",
    ],
)
def test_what_takes_too_long_is_cut(echoes: Service, begin: bytes, drop: bytes) -> None:
    with echoes.connect() as client:
        client.sendall(begin)
        start, data = time.monotonic(), b""
        client.settimeout(0.05)
        while time.monotonic() < start + 3:
            try:
                client.sendall(drop)
                part = client.recv(2**16)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not part:
                break
            data += part
        assert 0.5 < time.monotonic() - start < 1.5
    late = [answer for answer in answers(data) if answer.status != 200]
    unfinished = b"HTTP/1.1" in begin.replace(request("POST", "/", b"done"), b"") or b"HT" in begin[-3:]
    assert statuses(late) == ([408] if unfinished else [])
    assert all("did not arrive within 0.6 s" in answer.error() for answer in late)


def test_a_client_that_does_not_read_its_answer_is_cut(echoes: Service) -> None:
    descriptors = echoes.descriptors()
    with echoes.connect(receive_bytes=4096) as client:
        client.sendall(request("GET", "/big"))
        for _ in range(15):
            time.sleep(0.1)
            client.recv(1)
        assert echoes.descriptors() <= descriptors
        data = read_all(client)
    assert len(data) < len(BIG)


def test_a_client_that_reads_at_once_gets_large_answers_whole(echoes: Service) -> None:
    assert echoes.send("GET", "/big").body == BIG


def test_large_requests_together_are_bounded_and_small_ones_pass(echoes: Service) -> None:
    holders = [echoes.connect() for _ in range(2)]
    try:
        for holder in holders:
            holder.sendall(post(Content_Length=str(SMALL - 1)) + b"x" * (SMALL - 2))
        deadline = time.monotonic() + 5
        refused = closed_within(holders[1], deadline - time.monotonic()) or closed_within(holders[0], 0.1)
        assert refused
    finally:
        for holder in holders:
            holder.close()
    with echoes.connect() as holder:
        holder.sendall(post(Content_Length=str(SMALL - 1)) + b"x" * (SMALL - 2))
        time.sleep(0.2)
        answer = echoes.send("POST", "/", b"x" * (SMALL - 1))
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        answer.error()
        assert echoes.send("POST", "/", b"x" * 60_000).status == 200
    time.sleep(0.1)
    assert echoes.send("POST", "/", b"x" * (SMALL - 1)).status == 200, "what a lost connection held was given back"


def test_more_connections_than_allowed_are_refused_and_room_comes_back(echoes: Service) -> None:
    crowd = [echoes.connect() for _ in range(SHORT["connections"])]
    try:
        (answer,) = answers(read_all(echoes.connect()))
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert all(closed_within(client, 2) for client in crowd), "idle ones are cut"
        assert echoes.send("POST", "/", b"a").status == 200
    finally:
        for client in crowd:
            client.close()


def test_where_the_system_allows_fewer_descriptors_fewer_connections_are_taken() -> None:
    resource = pytest.importorskip("resource", reason="Windows counts no descriptors")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    with served(echo, prepare=limited) as service:
        crowd = [service.connect() for _ in range(250)]
        try:
            until, closed = time.monotonic() + 20, 0
            while closed <= 80 and time.monotonic() < until:
                time.sleep(1)  # asyncio tries again a second after the descriptors ran out
                closed = sum(closed_within(client, 0.005) for client in crowd)
            time.sleep(1.5)
            assert 80 < sum(closed_within(client, 0.005) for client in crowd) < 150
        finally:
            for client in crowd:
                client.close()
        time.sleep(0.3)
        assert service.send("POST", "/", b"a").status == 200


def test_a_client_that_expects_100_hears_it_only_where_its_body_is_wanted(echoes: Service) -> None:
    with echoes.connect() as client:
        client.sendall(post(Expect="100-continue", Content_Length="3", Connection="close"))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        (answer,) = answers(read_all(client))
    assert answer.body == b"abc"
    (answer,) = echoes.ask(post(Expect="100-continue", Content_Length=str(2**30)))
    assert answer.status == 413


def test_a_wish_for_another_protocol_is_passed_over(echoes: Service) -> None:
    wish = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")]
    found = echoes.ask(request("GET", "/", headers=wish) + request("POST", "/", b"next", close=True))
    assert [answer.body for answer in found] == [b"", b"next"]
    (answer,) = echoes.ask(request("POST", "/", b"abc", wish))  # httptools would take the body for the other protocol
    assert answer.status == 400
    assert "without Upgrade" in answer.error()


MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "http 0.9": b"GET /\r\n\r\n",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "length and chunks": post(Content_Length="3", Transfer_Encoding="chunked") + b"0\r\n\r\n",
    "chunks and length": post(Transfer_Encoding="chunked", Content_Length="3") + b"0\r\n\r\n",
    "two lengths": request("POST", "/", headers=[("Content-Length", "3"), ("Content-Length", "4")]) + b"abcd",
    "two equal lengths": request("POST", "/", headers=[("Content-Length", "3"), ("Content-Length", "3")]) + b"abc",
    "a list of lengths": post(Content_Length="3, 3") + b"abc",
    "negative length": post(Content_Length="-3") + b"abc",
    "signed length": post(Content_Length="+3") + b"abc",
    "length of 2^64": post(Content_Length=str(2**64)) + b"abc",
    "length in hex": post(Content_Length="0x3") + b"abc",
    "empty length": post(Content_Length="") + b"abc",
    "negative chunk": post(Transfer_Encoding="chunked") + b"-1\r\nab\r\n",
    "chunk of 2^70": post(Transfer_Encoding="chunked") + b"%x\r\nab\r\n" % 2**70,
    "chunk of no size": post(Transfer_Encoding="chunked") + b"\r\nab\r\n",
    "chunk longer than said": post(Transfer_Encoding="chunked") + b"1\r\nabcd\r\n",
    "space before colon": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "zero in header": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "lone line feed": b"GET / HTTP/1.1\nHost: a\n\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "not ASCII": "GET /ä HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "connect": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "coded chunks": post(Transfer_Encoding="gzip, chunked") + b"0\r\n\r\n",
    "chunks unknown": post(Transfer_Encoding="xchunked") + b"0\r\n\r\n",
    "chunked twice": post(Transfer_Encoding="chunked, chunked") + b"0\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    "a long address": b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 2**20,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_sound_request_is_refused_and_the_connection_closed(echoes: Service, name: str) -> None:
    found = echoes.ask(MALFORMED[name])
    assert len(found) == 1, found
    assert found[0].status in (400, 431), found
    assert found[0].error()
    assert found[0].headers["connection"] == "close"


def test_a_smuggled_second_request_is_not_answered(echoes: Service) -> None:
    smuggled = request("POST", "/", b"smuggled")
    for first in (
        post(Content_Length="0", Transfer_Encoding="chunked") + b"0\r\n\r\n",
        post(Transfer_Encoding="chunked, identity") + b"0\r\n\r\n",
        request("POST", "/", headers=[("Content-Length", "0"), ("Content-Length", str(len(smuggled)))]),
    ):
        assert not any(answer.body == b"smuggled" for answer in echoes.ask(first + smuggled))


def test_a_mistake_behind_a_sound_request_gives_that_one_its_own_answer_or_none(echoes: Service) -> None:
    for answer in echoes.ask(request("POST", "/", b"sound") + b"rubbish\r\n\r\n"):
        assert (answer.status, answer.body) == (200, b"sound") or answer.status == 400
    found = echoes.ask(request("GET", "/slow") + b"rubbish\r\n\r\n")
    assert statuses(found) in ([], [200, 400])


def test_signals_let_requests_under_way_finish_and_take_no_more() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with served(echo) as service:
            idle, busy = service.connect(), service.connect()
            busy.sendall(request("GET", "/slow"))
            time.sleep(0.2)
            service.process.send(number)
            assert closed_within(idle, 0.8)
            with pytest.raises(ConnectionError):
                service.connect()
            assert statuses(answers(read_all(busy))) == [200]
            code, _, error = service.process.finish(5)
            assert code == 70, "InterruptedRunError, of which the command line makes 128 + the signal's number"
            assert f"stopped by {number.name}" in error


def test_a_request_that_does_not_end_is_waited_for_within_a_bound() -> None:
    with served(echo, shutdown_seconds=0.5) as service, service.connect() as busy:
        busy.sendall(post(Content_Length="10"))
        time.sleep(0.1)
        begin = time.monotonic()
        service.process.send(signal.SIGTERM)
        service.process.finish(5)
        assert time.monotonic() - begin < 2


def test_a_port_in_use_is_one_sentence(echoes: Service) -> None:
    from rltemp.errors import BadInputError
    from rltemp.service.host import serve
    from rltemp.service.limits import Limits

    with pytest.raises(BadInputError, match=f"cannot listen on 127.0.0.1:{echoes.port}: .* Give another"):
        serve(echo, "127.0.0.1", echoes.port, limits=Limits(), on_ready=print)


def test_a_thousand_idle_connections_take_nothing_from_others() -> None:
    with served(echo) as service:
        before, crowd = service.memory(), [service.connect() for _ in range(1000)]
        try:
            assert service.send("POST", "/", b"a").status == 200
            assert service.memory() - before < 16 * 2**20
        finally:
            for client in crowd:
                client.close()
        time.sleep(0.3)
        assert service.send("POST", "/", b"a").status == 200


def test_clients_that_leave_in_the_middle_leave_nothing_behind(echoes: Service) -> None:
    def leave(number: int) -> None:
        with echoes.connect() as client:
            client.sendall(request("POST", "/big", b"x" * 200_000)[: 100 + 1000 * number])
            if number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    time.sleep(0.7)
    descriptors = echoes.descriptors()
    threads = [threading.Thread(target=leave, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1)
    assert echoes.descriptors() <= descriptors
    assert echoes.send("POST", "/", b"x" * (SMALL - 1)).status == 200
