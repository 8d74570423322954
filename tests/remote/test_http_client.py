"""A request ends, whatever the server does, and takes nothing but a whole answer of bounded size."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from support.raw_server import Behaviour, RawServer, answers, closes_after, drips, floods, hangs, http, late

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError
from rltemp.io.files import read_token
from rltemp.remote.http_client import HttpClient, checked_url

OK = http(b"fine", "200 OK", "ETag: abc")
BAD: dict[str, tuple[Behaviour, str]] = {
    "hangs": (hangs, "timed out"),
    "drips its body": (drips(http(b"x" * 1000), 0.002), "does not end in time"),
    "is late": (late(1.0, answers(OK)), "timed out"),
    "sends garbage": (answers(b"\x00\xff\r\n\r\n" * 9), "Connection aborted|BadStatusLine"),
    "speaks another protocol": (closes_after(b"SSH-2.0-server\r\n"), "BadStatusLine"),
    "claims more than it sends": (closes_after(http(b"fine", length=9)), "IncompleteRead"),
    "closes in the head": (closes_after(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX"), "IncompleteRead"),
    "closes at once": (closes_after(b""), "without response|Connection aborted"),
    "claims too much": (answers(http(b"fine", length=10**12)), "timed out"),
    "never ends": (floods(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), "over 100000 bytes"),
    "never ends its chunks": (
        floods(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        "over 100000 bytes",
    ),
    "never ends its head": (floods(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "more than 100 headers"),
    "lies about a chunk": (
        answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"),
        "Connection broken|Invalid|IncompleteRead",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_is_a_failure_that_says_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rltemp.remote.http_client.MAX_ANSWER", 100_000)
    behaviour, reason = BAD[name]
    with RawServer(behaviour) as server, pytest.raises(ExchangeFailedError, match=reason) as failed:
        HttpClient(server.url).request("POST", "/x", b"12345", seconds=0.2)
    assert "\n" not in str(failed.value)


def test_a_refused_connection_is_named() -> None:
    with RawServer() as server:
        pass
    with pytest.raises(ExchangeFailedError, match="refused"):
        HttpClient(server.url).request("GET", "/", seconds=1)


def test_good_answers_come_over_one_connection(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with RawServer(answers(OK)) as server:
        client = HttpClient(server.url + "/prefix/", tmp_path / "token")
        for _ in range(5):
            answer = client.request("POST", "/v2/x", b"body", {"X-One": "1"}, seconds=5)
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"fine", "abc")
    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /prefix/v2/x HTTP/1.1"
    assert {b"X-One: 1", b"Authorization: Bearer s3cret"} <= set(head.split(b"\r\n"))
    assert body == b"body"


def test_after_a_failure_the_old_answer_is_nobodys() -> None:
    with RawServer(late(0.1, answers(http(b"old")))) as server:
        client = HttpClient(server.url)
        with pytest.raises(ExchangeFailedError):
            client.request("GET", "/", seconds=0.05)
        server.behaviour = answers(http(b"new"))
        assert client.request("GET", "/", seconds=5).body == b"new"


def test_redirects_are_not_followed_and_proxies_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(answers(OK)) as other, RawServer() as server:
        monkeypatch.setenv("http_proxy", other.url)
        monkeypatch.setenv("HTTP_PROXY", other.url)
        server.behaviour = answers(http(b"", "302 Found", f"Location: {other.url}/x"))
        with pytest.raises(ExchangeFailedError, match="302"):
            HttpClient(server.url).request("GET", "/", seconds=5)
        assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize("status", [400, 404, 408, 425, 429, 500, 503, 204, 304])
def test_4xx_is_a_mistake_and_all_else_but_200_an_outage(status: int) -> None:
    error = RequestRefusedError if status in (400, 404) else ExchangeFailedError
    with RawServer(answers(http(b"" if status in (204, 304) else b"what \x1bwas", f"{status} X"))) as server:
        client = HttpClient(server.url)
        with pytest.raises(error, match=f"it answers {status}"):
            client.request("GET", "/", seconds=5)
        assert client.request("GET", "/", seconds=5, allowed=(status,)).status == status


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_asks_over_a_connection_of_its_own() -> None:
    with RawServer(answers(OK)) as server:
        client = HttpClient(server.url)
        client.request("GET", "/", seconds=5)
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = 0 if client.request("GET", "/", seconds=5).body == b"fine" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.request("GET", "/", seconds=5)
        assert server.connections == 2


def test_without_urllib3_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(BadInputError, match=re.escape("pip install 'rltemp[remote]'")):
        HttpClient("http://127.0.0.1:9")


def test_urls_that_cannot_be_asked_are_refused_without_a_password() -> None:
    for url in ("", "127.0.0.1:8000", "ftp://host", "http://", "http://a b", "http://h:99999", "http://h?x=1",
                "http://h#x", "http://h/\r\nX: y", "file:///etc/passwd", "http://[::1", "http://h\n"):  # fmt: skip
        with pytest.raises(BadInputError) as error:
            checked_url(url)
        assert "\n" not in str(error.value)
    with pytest.raises(BadInputError) as error:
        HttpClient("http://user:hunter2@host")
    assert "hunter2" not in str(error.value)
    assert checked_url("https://h.example/a/") == "https://h.example/a"


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
