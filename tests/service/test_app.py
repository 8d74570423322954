"""The routes over HTTP, from the command line's own process: answers, refusals, tokens, metrics, logs, and the end."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data import table
from support.processes import code, until
from support.services import Served, serving, serving_application
from support.wire import BYTES, JSON, infer_body, request

import rltemp
from rltemp.loading import SHIPPED
from rltemp.policy.policy_file import read_policy
from rltemp.training.tensorboard import TAGS  # noqa: F401  # loads what a forked process then need not

pytest.importorskip("fastapi", reason="needs rltemp[serve]")

from rltemp.service.app import Service
from rltemp.service.limits import Limits
from rltemp.service.repository import Repository

TOKEN = "correct-horse-battery-staple"
LOGITS = [
    {"name": name, "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [3, 2, 1.5]]}
    for name in ("student_logits", "teacher_logits")
]
FEATURES = {"name": "features", "shape": [1, 8], "datatype": "FP32", "data": [[0.1] * 8]}


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """What `rltemp serve` logs in this process ends with the test."""
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with serving("--log-requests") as served:
        yield served


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    with serving("--log-requests", "--token-file", file) as served:
        yield served


def infer(service: Served, model: str, inputs: list[dict[str, Any]], **more: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"inputs": inputs, **more}).encode()
    status, headers, answer = service.request("POST", f"/v2/models/{model}/infer", body, content_type=JSON)
    assert headers["content-type"] == JSON
    found: dict[str, Any] = json.loads(answer)
    return status, found


def events(service: Served, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.process.read("err").splitlines()]
    return [line for line in lines if line["event"] == name]


def test_the_server_says_what_it_is(service: Served) -> None:
    assert service.request("GET", "/v2/health/live")[::2] == (200, b'{"live":true}')
    assert service.request("GET", "/v2/health/ready")[::2] == (200, b'{"ready":true}')
    found = json.loads(service.request("GET", "/v2")[2])
    assert (found["name"], found["version"]) == ("rltemp", rltemp.__version__)
    assert {"binary_tensor_data", "rltemp_policy"} <= set(found["extensions"])
    assert b"swagger" in service.request("GET", "/docs")[2]


def test_a_model_says_what_it_takes_and_gives(service: Served) -> None:
    rule = json.loads(service.request("GET", "/v2/models/dtkd%3Areference%3D2/versions/1")[2])
    assert (rule["name"], rule["versions"], rule["parameters"]["kind"]) == ("dtkd:reference=2", ["1"], "rule")
    policy = json.loads(service.request("GET", "/v2/models/universal")[2])
    file = read_policy(SHIPPED["universal"])
    assert policy["inputs"][0] == {"name": "features", "datatype": "FP32", "shape": [-1, len(file.manifest.features)]}
    assert [port["name"] for port in policy["outputs"]][-1] == "action"
    assert policy["parameters"]["sha256"] == file.sha256
    assert json.loads(policy["parameters"]["manifest"]) == json.loads(file.manifest.to_json())


def test_the_index_lists_policies_and_rules(service: Served) -> None:
    for body in (b"", b"{}", b'{"ready": true}'):
        entries = json.loads(service.request("POST", "/v2/repository/index", body)[2])
        assert {"universal", "dtkd", "fixed"} <= {entry["name"] for entry in entries}
    for body, status in ((b"[]", 422), (b"{", 400), (b'{"ready": 1}', 422), (b"{" * 2**21, 413)):
        assert service.request("POST", "/v2/repository/index", body)[0] == status


def test_a_policy_is_sent_whole_once_and_then_only_its_tag(service: Served) -> None:
    status, headers, body = service.request("GET", "/v2/models/universal/policy")
    assert (status, body) == (200, SHIPPED["universal"].read_bytes())
    assert headers["etag"] == f'"{read_policy(SHIPPED["universal"]).sha256}"'
    assert headers["rltemp-model-version"] == "1"
    for tag in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
        status, again, body = service.request("GET", "/v2/models/universal/versions/1/policy", if_none_match=tag)
        assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    assert service.request("GET", "/v2/models/universal/policy", if_none_match='"other"')[0] == 200
    assert service.request("GET", "/v2/models/dtkd/policy")[0] == 404


def test_json_is_answered_with_json(service: Served) -> None:
    status, found = infer(service, "fixed%3A3", LOGITS, id="seven")
    assert (status, found["model_name"], found["model_version"], found["id"]) == (200, "fixed:3", "1", "seven")
    assert {output["name"]: output["data"] for output in found["outputs"]} == {
        "student_temperature": [3.0, 3.0],
        "teacher_temperature": [3.0, 3.0],
        "weight": [9.0, 9.0],
    }


def test_a_large_request_is_answered_as_small_ones_are(service: Served) -> None:
    """In a thread, where a small one is not."""
    random = np.random.default_rng(0)
    values = {name: random.standard_normal((2048, 100)).astype("<f4") for name in ("student_logits", "teacher_logits")}

    def ask(part: slice) -> dict[str, Any]:
        body, length = infer_body({name: array[part] for name, array in values.items()})
        names = {"content_type": BYTES, "Inference_Header_Content_Length": str(length)}
        status, _, answer = service.request("POST", "/v2/models/normkd/infer", body, **names)
        assert status == 200, answer
        return {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}

    whole, start = ask(slice(None)), ask(slice(16))
    for name, data in start.items():
        np.testing.assert_allclose(whole[name][:16], data, rtol=1e-6)
        assert len(whole[name]) == 2048


TOO_LARGE = [
    ("/v2/models/dtkd/infer", " " * (8 * 2**20 + 1), {}, 413, "8,388,608 bytes"),
    ("/v2/models/dtkd/infer", " " * (3 * 2**20), {}, 413, "bytes of JSON"),
]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"), [*table("service/refused", "requests"), *TOO_LARGE]
)
def test_what_cannot_be_answered_is_refused_with_a_sentence(service, path, body, headers, status, message) -> None:
    found = service.request("POST", path, body.encode(), **headers)
    assert (found[0], found[1]["content-type"]) == (status, JSON)
    error = json.loads(found[2])
    assert list(error) == ["error"]
    assert message in error["error"], error


def test_metrics_move_with_what_is_asked(service: Served) -> None:
    infer(service, "dtkd", LOGITS)
    infer(service, "universal@1", [FEATURES], outputs=[{"name": "action"}])
    before = service.counts()
    nan = {**FEATURES, "data": [[0.0] * 6 + [float("nan"), float("inf")]]}
    for _ in range(3):
        infer(service, "dtkd", LOGITS)
    infer(service, "universal@1", [nan])
    infer(service, "universal@1", [{**FEATURES, "data": [[9.0] * 8]}])
    infer(service, "no-such-model-ever", LOGITS)
    infer(service, "fixed:4", [{**one, "shape": [2, 3, 2], "data": list(range(12))} for one in LOGITS])
    after = service.counts()
    moved = {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}
    assert moved['rltemp_requests_total{code="200",model="dtkd",route="infer"}'] == 3
    assert moved['rltemp_requests_total{code="400",model="universal@1",route="infer"}'] == 1
    assert moved['rltemp_requests_total{code="404",model="other",route="infer"}'] == 1
    assert moved['rltemp_rejections_total{reason="non_finite"}'] == 1
    assert moved['rltemp_rejections_total{reason="unknown_model"}'] == 1
    assert moved["rltemp_non_finite_inputs_total"] == 2
    assert moved['rltemp_samples_total{model="dtkd"}'] == 6
    assert moved['rltemp_samples_total{model="fixed"}'] == 6, "of every leading axis"
    assert moved['rltemp_infer_seconds_count{model="dtkd"}'] == 3
    assert 0 < moved['rltemp_infer_seconds_sum{model="dtkd"}'] < 3
    assert moved['rltemp_clamped_actions_total{model="universal@1"}'] >= 1
    sha256 = read_policy(SHIPPED["universal"]).sha256
    assert after[f'rltemp_policy_info{{model="universal",sha256="{sha256}",version="1"}}'] == 1
    assert not [name for name in after if "no-such-model" in name], "a label that clients choose is without bound"


def test_the_manual_lists_every_metric_with_its_labels() -> None:
    from rltemp.service.metrics import Metrics
    from rltemp.service.refusals import Refusal
    from rltemp.service.served_models import PolicyModel

    metrics = Metrics()
    metrics.requests.labels("infer", "dtkd", "200").inc()
    metrics.inferred("universal", 0.1, 1, 1)
    metrics.refused(Refusal(400, "", "non_finite", values=1))
    text = metrics.text([PolicyModel("universal", SHIPPED["universal"].read_bytes())]).decode()
    names = [name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")]
    found = {}
    for name in names:
        (labels,) = set(re.findall(rf"^{name}(?:_count)?(?:{{(.*)}})? ", text, re.MULTILINE))
        found[name] = sorted(re.findall(r'(\w+)="', labels))
    manual = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    rows = re.findall(r"^\| `(rltemp_\w+)` \| (.*?) ?\|", manual, re.MULTILINE)
    assert {name: sorted(filter(None, labels.split(", "))) for name, labels in rows} == found


def test_a_body_that_is_refused_is_counted(service: Served) -> None:
    before, name = service.counts(), 'rltemp_rejections_total{reason="too_large"}'
    (answer,) = service.ask(request("POST", "/v2/models/dtkd/infer", headers=[("Content-Length", str(2**40))]))
    assert answer.status == 413
    assert service.counts()[name] == before.get(name, 0) + 1


def test_an_answer_that_is_not_read_is_counted_and_leaves_no_traceback() -> None:
    limits = {"answer_seconds": 0.5}
    body, length = infer_body({"features": np.zeros((200_000, 8), "<f2")})
    head = [("Content-Type", BYTES), ("Inference-Header-Content-Length", str(length))]
    service = Service(Repository(), limits=Limits(**limits))
    with serving_application(service, **limits) as served, served.connect(receive_bytes=4096) as client:
        client.sendall(request("POST", "/v2/models/universal@1/infer", body, head))
        until(lambda: served.counts().get('rltemp_rejections_total{reason="too_slow"}') == 1, 20)
        assert "Traceback" not in served.process.read("err")


def test_logs_are_json_and_hold_no_line_of_a_clients_own(service: Served) -> None:
    service.request("GET", "/v2/models/%0A%7B%22event%22%3A%22forged%22%7D%1B%5B31m")
    until(lambda: any("forged" in line["path"] for line in events(service, "request")), 10)
    (line,) = [line for line in events(service, "request") if "forged" in line["path"]]
    assert (line["method"], line["code"], line["path"].startswith("/v2/models/\n{")) == ("GET", 404, True)
    assert line["error"].startswith("no model")
    assert "\x1b" not in service.process.read("err")
    (start,) = events(service, "start")
    assert start["url"] == service.url
    assert start["policies"] == {name: read_policy(path).sha256 for name, path in SHIPPED.items()}
    assert not events(service, "forged")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.invalid"])
def test_an_address_that_others_reach_needs_a_token(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("serve", "--host", host, "--port", "0") == 2
    needed = "needs --token-file; anyone on the network could otherwise use this policy"
    assert capsys.readouterr().err == f"rltemp: binding to {host} {needed}\n"


def test_with_a_token_other_addresses_are_served(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with serving("--host", "0.0.0.0", "--token-file", file) as service:
        local = Served(service.url.replace("0.0.0.0", "127.0.0.1"), service.process)
        assert local.request("GET", "/v2")[0] == 401
        assert local.request("GET", "/v2", authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer correct-horse-b\xe4ttery-staple",
        "B\xe4rer " + TOKEN,
        "Bearer \x80\xff",
    ],
)
def test_a_missing_wrong_or_foreign_token_is_answered_alike(closed: Served, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for method, path in (("GET", "/v2"), ("POST", "/v2/models/dtkd/infer"), ("GET", "/metrics"), ("GET", "/nowhere")):
        status, found, body = closed.request(method, path, b"{}" if method == "POST" else None, **headers)
        assert (status, body) == (401, b'{"error": "not authorized"}')
        assert found["www-authenticate"] == "Bearer"


def test_two_tokens_are_none(closed: Served) -> None:
    given = [("Authorization", "Bearer wrong-wrong-wrong"), ("Authorization", f"Bearer {TOKEN}")]
    assert closed.send("GET", "/v2", headers=given).status == 401


def test_with_the_token_everything_is_answered(closed: Served) -> None:
    bearer = {"authorization": f"bearer {TOKEN}"}
    for path in ("/v2", "/v2/models/universal", "/v2/models/universal/policy", "/metrics", "/openapi.json", "/docs"):
        assert closed.request("GET", path, **bearer)[0] == 200
    schema = json.loads(closed.request("GET", "/openapi.json", **bearer)[2])
    assert "security" not in schema["paths"]["/v2/health/live"]["get"]
    asked = schema["paths"]["/v2/models/{model}/infer"]["post"]
    assert (asked["security"], "401" in asked["responses"]) == ([{"token": []}], True)


def test_health_stays_open_and_tells_nothing_of_a_policy(closed: Served) -> None:
    assert closed.request("GET", "/v2/health/live")[::2] == (200, b'{"live":true}')
    assert closed.request("GET", "/v2/health/ready")[::2] == (200, b'{"ready":true}')
    assert closed.request("GET", "/v2/models/universal/ready")[::2] == (200, b'{"name":"universal","ready":true}')
    assert closed.request("GET", "/v2/models/nobody/ready")[::2] == (404, b'{"error": "no such model"}')
    assert closed.request("GET", "/v2/models/dtdk/versions/2/ready")[::2] == (404, b'{"error": "no such model"}')


def test_no_log_metric_or_argument_holds_the_token(closed: Served) -> None:
    closed.request("GET", "/v2", authorization=f"Bearer {TOKEN}")
    metrics = closed.request("GET", "/metrics", authorization=f"Bearer {TOKEN}")[2].decode()
    printed = closed.process.read("out") + closed.process.read("err")
    assert "request" in printed
    assert TOKEN not in metrics + printed
    (start,) = events(closed, "start")
    assert start["token"] is True


def test_a_token_on_the_command_line_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--token", TOKEN), (f"--token={TOKEN}",)):
        assert code("serve", *words) == 2
        said = capsys.readouterr()
        assert "everybody on this machine can read a command line" in said.err
        assert said.err.count("\n") == 1
        assert TOKEN not in said.err + said.out


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", b"0123456789 abcdef", "correct-horse-bättery".encode(), b"x" * 5000]
)
def test_a_token_file_without_a_good_token_is_refused(tmp_path, content: bytes, capsys) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    assert code("serve", "--token-file", file) == 2
    said = capsys.readouterr().err
    needs = "needs one line of 1 to 4096 printable ASCII characters, no blanks", "needs 16 characters or more"
    assert any(words in said for words in needs)
    assert not content.strip() or content.decode() not in said


def test_a_token_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path, tmp_path / "missing"):
        assert code("serve", "--token-file", file) == 2
        assert f"cannot read the token file {file}" in capsys.readouterr().err


def test_a_token_file_that_others_can_read_is_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from rltemp.service.tokens import read_token

    file = tmp_path / "token"
    file.write_text(TOKEN)
    for mode, words in ((0o600, ""), (0o640, "can be read by others on this machine; chmod 600 it")):
        file.chmod(mode)
        assert read_token(file) == TOKEN.encode()
        assert words in caplog.text
        assert bool(caplog.text) == bool(words)


@pytest.mark.parametrize(("words", "message"), table("service/refused", "options"))
def test_options_that_cannot_be_are_named(words: list[str], message: str, capsys) -> None:
    assert code("serve", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_file_that_is_no_policy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("serve", "--models", f"mine={tmp_path}") == 3
    assert capsys.readouterr().err.startswith(f"rltemp: policy file {tmp_path.name}: is not a regular file")


def test_a_port_that_is_taken_is_named(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = service.address.rpartition(":")[2]
    assert code("serve", "--port", port) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_one_line_says_what_to_install(library: str, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert code("serve") == 2
    assert capsys.readouterr().err == f"rltemp: rltemp serve needs {library}; pip install 'rltemp[serve]'\n"


def test_a_policy_of_ones_own_is_served_under_its_name(tmp_path: Path) -> None:
    from support.policies import random_policy

    file = random_policy(tmp_path / "p.safetensors", 8)
    with serving("--models", f"mine={file}") as service:
        assert service.request("GET", "/v2/models/mine/policy")[2] == file.read_bytes()
        status, found = infer(service, "mine", [FEATURES])
        assert (status, found["model_name"]) == (200, "mine")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_end(number: signal.Signals) -> None:
    with serving() as service:
        random = np.random.default_rng(0).standard_normal((1000, 1000)).astype("<f4")
        body, length = infer_body({"student_logits": random, "teacher_logits": random})
        names = {"content_type": BYTES, "Inference_Header_Content_Length": str(length)}
        found: list[int] = []

        def ask() -> None:
            found.append(service.request("POST", "/v2/models/dtkd/infer", body, **names)[0])

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda: any("samples" in name for name in service.counts()))  # the first of them is answered
        service.process.send(number)
        for client in clients:
            client.join()
        exit_code, _, err = service.process.finish(30)
        assert (exit_code, found) == (128 + number, [200] * 4)
        *lines, last = err.splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["start", "stop"]
        assert last == f"rltemp: stopped by {number.name}. Go on with: rltemp serve --port 0"
