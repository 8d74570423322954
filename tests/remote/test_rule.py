"""The remote rule is the service's policy, to 1e-6 and with the same gradient, and says when it was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.data import table
from support.policies import random_policy
from support.processes import code, curves, finish, kill_after_a_checkpoint, start, until
from support.raw_server import Behaviour, RawServer, answers, http
from torch import Tensor

pytest.importorskip("fastapi", reason="needs rltemp[serve]")
pytest.importorskip("uvicorn", reason="needs rltemp[serve]")

import uvicorn
from support.services import Served, serving

from rltemp import Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.errors import BadInputError, ExchangeFailedError, TrainingStoppedError
from rltemp.io.run_folders import read_json
from rltemp.loading import SHIPPED
from rltemp.remote import RemoteRule, poller, remote_method
from rltemp.remote.remote_policy import read_actions
from rltemp.service.app import Service
from rltemp.service.repository import Repository

MODES = ("weights", "features")
PATIENT = 20.0  # seconds, on a machine that may be busy
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "of-logits": {"reference": "dtkd:reference=2", "features": ("student_margin", "student_loss")},
    "full": {"reference": "fixed:2", "balanced": True, "weight_ratio": 2.0},
    "fading": {"balanced": True, "weight_ratio": 2.0, "gain": 2.0, "seen": (-1.0, 1.0)},
}


@contextlib.contextmanager
def remote(url: str, model: str, **options: Any) -> Iterator[RemoteRule]:
    with contextlib.closing(RemoteRule(url, model, **{"deadline": PATIENT, **options})) as rule:
        yield rule


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Around a constant; around what depends on the logits; balanced, with a weight of its own."""
    folder = tmp_path_factory.mktemp("policies")
    return {name: random_policy(folder / f"{name}.safetensors", 6, **options) for name, options in KINDS.items()}


@pytest.fixture(scope="module")
def service(policies: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving("--models", *(f"{name}={path}" for name, path in policies.items())) as served:
        yield served


@pytest.fixture
def repository(policies: dict[str, Path]) -> Repository:
    return Repository({"learned": str(policies["plain"])})


@pytest.fixture
def own_service(repository: Repository) -> Iterator[str]:
    """The service on a thread of this process, so that a test can publish versions."""
    server = uvicorn.Server(uvicorn.Config(Service(repository), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def gone() -> RawServer:
    """A server that answers no more."""
    with RawServer() as server:
        return server


def signals(*shape: int, seed: int = 0, **fields: Any) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    dtype = fields.pop("dtype", torch.float32)
    student, teacher = (4 * torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    return Signals(student.requires_grad_(), teacher, labels, 0.3, **fields)


def values(found: Temperatures) -> Tensor:
    guarded = torch.zeros_like(found.weight) if found.guarded is None else found.guarded
    return torch.stack([found.student, found.teacher, found.weight, guarded]).detach()


def gradient(rule: Callable[[Signals], Temperatures], given: Signals) -> Tensor:
    return torch.autograd.grad(kd_loss(given, rule(given)).sum(), given.student_logits)[0]


SHAPES: dict[str, Signals] = {
    "a batch": signals(50, 10),
    "one sample": signals(1, 3),
    "a token batch": signals(4, 7, 5),
    "a stack": signals(3, 8, 10, stacked=True),
    "a mask": signals(4, 6, 5, mask=torch.arange(24).view(4, 6) % 3 > 0),
    "a mask without a sample": signals(2, 3, 5, mask=torch.zeros(2, 3, dtype=torch.bool)),
    "float64": signals(6, 4, dtype=torch.float64),
    "no sample": signals(0, 4),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*KINDS, "universal"])
def test_it_is_the_services_policy_to_a_millionth_and_not_its_fallback(service, policies, name, mode) -> None:
    local = load_rule(str(policies.get(name, name)))
    with remote(service.url, name, mode=mode) as rule:
        for label, given in SHAPES.items():
            found, wanted = values(rule(given)), values(local(given))
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6, msg=label)
            if label in ("a batch", "a stack", "a mask"):
                fallback = values(load_rule(rule.fallback.name)(given))
                assert not torch.allclose(found, fallback, rtol=1e-2), "the policy does nothing here"
                torch.testing.assert_close(gradient(rule, given), gradient(local, given), rtol=1e-4, atol=1e-6)
        counts = rule.counts()
    assert counts["fallback_steps"] == counts["failures"] == 0
    assert counts["versions"] == {"1": counts["steps"]}
    assert counts["steps"] > len(SHAPES)
    assert len(counts["sha256"]) == 64
    assert counts["calls"] == (counts["steps"] if mode == "features" else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dtkd:reference=2", "cswt", "fixed:3"])
def test_a_closed_form_rule_at_the_service_is_the_one_here(service: Served, name: str, mode: Any) -> None:
    with remote(service.url, name, mode=mode) as rule:
        for given in SHAPES.values():
            assert torch.equal(values(rule(given)), values(load_rule(name)(given)))
        assert rule.counts()["fallback_steps"] == rule.counts()["calls"] == 0


def test_the_method_has_the_loss_weights_of_the_policys_reference(service: Served) -> None:
    method, wanted = remote_method(service.url, "dtkd"), load_method("dtkd")
    assert (method.ce_weight, method.plain_kd_weight, method.warmup) == (
        wanted.ce_weight,
        wanted.plain_kd_weight,
        wanted.warmup,
    )
    given, policy = signals(9, 4), remote_method(service.url, "universal")
    torch.testing.assert_close(policy.loss(given), load_method("universal").loss(given))
    local = load_method("universal")
    for name in ("limits", "per_sample", "checked"):  # else a step would wait for the device
        assert getattr(policy.rule, name) == getattr(local.rule, name)  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", MODES)
def test_a_new_version_takes_effect_between_steps_and_is_counted(own_service, repository, tmp_path, mode) -> None:
    second = random_policy(tmp_path / "second.safetensors", 6, seed=2)
    with remote(own_service, "learned", mode=mode, follow=0.02) as rule:
        before = values(rule(signals(5, 4)))
        assert (rule.versions, rule.inexact()) == ({"1": 1}, "")
        repository.publish("learned", second.read_bytes(), "2")
        until(lambda: rule(signals(5, 4)) and "2" in rule.versions)
        now = values(rule(signals(5, 4)))
        assert rule.counts()["sha256"] == repository.find("learned").sha256  # type: ignore[union-attr]
        assert rule.scalars()["controller/policy_version"] == 2
        assert rule.counts()["fallback_steps"] == 0
        assert rule.inexact() == "a controller: 2 versions, 0 steps without one"
    torch.testing.assert_close(now, values(load_rule(str(second))(signals(5, 4))), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(now, before)


def test_every_answer_is_whole_while_versions_change(own_service: str, repository: Repository, tmp_path: Path) -> None:
    """Policies around other references, by other features of one number: no step mixes two."""
    files = [
        random_policy(tmp_path / f"{index}.safetensors", 6, seed=index, reference=f"fixed:{index + 2}")
        for index in range(6)
    ]
    given, name = signals(5, 4), "mixed"
    repository.publish(name, files[0].read_bytes(), "1")
    wanted = [values(load_rule(str(file))(given)) for file in files]
    with remote(own_service, name, follow=0.005) as rule:
        for version, file in enumerate(files[1:], 2):
            repository.publish(name, file.read_bytes(), str(version))
            until(lambda: rule(given) and len(rule.versions) == version)  # noqa: B023
            found = values(rule(given))
            assert any(torch.allclose(found, each, rtol=1e-6) for each in wanted)
    torch.testing.assert_close(found, wanted[-1])


def test_weights_are_pulled_once_and_then_only_asked_after(own_service: str) -> None:
    """What the ETag is for; the service says what it sent."""

    def sent() -> dict[int, float]:
        text = rule._client.request("GET", "/metrics", seconds=PATIENT).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if "policy" in line and "_total" in line]
        return {code: sum(float(n) for key, _, n in lines if f'code="{code}"' in key) for code in (200, 304)}

    with remote(own_service, "learned", follow=0.01) as rule:
        until(lambda: sent()[304] > 3)
        assert sent()[200] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_mistake_is_said_before_the_run_begins(service: Served, mode: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"controller http://127.0.0.1:\d+ \(universl\): it answers 404"):
        RemoteRule(service.url, "universl", mode=mode, deadline=PATIENT)
    for options, needed in (
        ({"fallback": "none"}, "needs temperatures"),
        ({"fallback": "ctkd"}, "does not learn"),
        ({"fallback": "fixd"}, "did you mean 'fixed'"),
        ({"token_file": tmp_path / "none"}, "cannot read the token file"),
        ({"deadline": 0.0}, "above 0"),
        ({"mode": "guess"}, "weights or features"),
    ):
        with pytest.raises(BadInputError, match=needed):
            RemoteRule(service.url, "universal", **{"mode": mode, **options})
    with pytest.raises(BadInputError, match="user:password"):
        RemoteRule("http://me:secret@127.0.0.1:1", "universal")
    for name in ("", "a\nb", "x" * 300):
        with pytest.raises(BadInputError, match="printable characters"):
            RemoteRule(service.url, name)


def test_a_token_opens_the_service_and_a_wrong_one_is_a_mistake(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("0123456789abcdef-right\n")
    wrong.write_text("0123456789abcdef-wrong\n")
    for file in (right, wrong):
        file.chmod(0o600)
    with serving("--token-file", right) as served:
        with remote(served.url, "universal", token_file=right) as rule:
            rule(signals(3, 4))
            assert rule.counts()["fallback_steps"] == 0
        for file in (wrong, None):
            with pytest.raises(BadInputError, match="401") as refused:
                RemoteRule(served.url, "universal", token_file=file, deadline=PATIENT)
            assert "0123456789" not in str(refused.value)


def test_without_a_service_the_run_starts_under_fixed_4_or_strictly_not(gone: RawServer, caplog) -> None:
    given = signals(5, 4)
    with remote(gone.url, "universal") as rule:
        torch.testing.assert_close(rule.method("universal").loss(given), load_method("fixed:4").loss(given))
        assert rule.counts()["fallback_steps"] == rule.counts()["steps"] == 1
        assert (rule.limits, rule.inexact()) == (None, "a controller: 0 versions, 1 steps without one")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"controller {gone.url} (universal): ")
    assert "refused" in line
    assert "under fixed:4, whose loss weights it then keeps" in line
    with remote(gone.url, "universal", fallback="dtkd") as rule:
        torch.testing.assert_close(rule.method("x").loss(given), load_method("dtkd").loss(given))
    with pytest.raises(TrainingStoppedError, match="refused"):
        RemoteRule(gone.url, "universal", strict=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_service_that_comes_later_is_followed_and_the_loss_weights_stay(gone, mode, monkeypatch, caplog) -> None:
    monkeypatch.setattr(poller, "LONGEST", 0.1)
    with remote(gone.url, "universal", mode=mode) as rule:
        method, given = rule.method("universal"), signals(5, 4)
        plain = load_method("fixed:4")
        torch.testing.assert_close(method.loss(given), plain.loss(given))
        with serving("--port", gone.port):
            until(lambda: rule.limits is not None)
            torch.testing.assert_close(values(rule(given)), values(load_rule("universal")(given)))
            assert (method.ce_weight, method.kd_weight) == (plain.ce_weight, plain.kd_weight)
            counts = rule.counts()
    assert (counts["fallback_steps"], counts["versions"]) == (1, {"1": 1})
    assert caplog.records[-1].getMessage() == f"controller {gone.url} (universal): it is back"


def test_numbers_that_are_not_finite_reach_no_request(service: Served) -> None:
    broken = signals(4, 5)
    broken.teacher_logits[2, 1] = float("nan")
    with remote(service.url, "universal", mode="features") as rule:
        rule(broken)
        rule(signals(4, 5))
        assert rule.counts()["versions"] == {"1": 2}
        assert rule.counts()["failures"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("mode", MODES)
def test_a_fork_goes_on_under_the_version_that_it_has(service: Served, mode: Any) -> None:
    with remote(service.url, "universal", mode=mode) as rule:
        wanted = values(rule(signals(3, 4)))
        if (child := os.fork()) == 0:
            result = 1
            with contextlib.suppress(BaseException):
                result = 0 if torch.equal(values(rule(signals(3, 4))), wanted) and not rule.inexact() else 2
            os._exit(result)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        rule(signals(3, 4))
        assert rule.versions == {"1": 2}


# A service that lies.

ENDLESS = b"[" * 100_000, b'{"versions": ["1"]' + b" " * 600_000 + b"}"
LIES = [*(text.encode() for text in table("remote/lies")), *ENDLESS, b"\xff\xfe"]


@pytest.mark.parametrize("said", LIES)
def test_whatever_a_service_says_nothing_is_imported_and_the_run_begins(said: bytes) -> None:
    with RawServer(answers(http(said))) as server, remote(server.url, "dtkd") as rule:
        given = signals(3, 4)
        torch.testing.assert_close(values(rule(given)), values(load_rule("fixed:4")(given)))
        assert rule.counts()["fallback_steps"] == 1


def lies(policy: bytes, *headers: str) -> Behaviour:
    """Describes a policy, and sends these bytes as its file."""

    def behave(connection: Any, request: bytes) -> None:
        about = b'{"versions": ["1"], "parameters": {"kind": "policy"}}'
        connection.sendall(http(policy, "200 OK", *headers) if b"/policy HTTP" in request else http(about))

    return behave


def test_a_policy_that_fails_a_check_is_an_outage_and_the_last_one_stays(monkeypatch, caplog) -> None:
    monkeypatch.setattr(poller, "LONGEST", 0.01)
    draw, whole, given = random.Random(0), SHIPPED["universal"].read_bytes(), signals(3, 4)
    wanted = values(load_rule("universal")(given))
    with RawServer(lies(whole, "rltemp-model-version: a b")) as server, remote(server.url, "x", follow=0.001) as rule:
        assert "names no version" in caplog.records[0].getMessage()
        server.behaviour = lies(whole, "rltemp-model-version: 1")
        until(lambda: rule.limits is not None)
        asked = len(server.requests)
        for _ in range(50):
            broken = bytearray(whole)
            broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            server.behaviour = lies(bytes(broken), "rltemp-model-version: 2")
            count = len(server.requests)
            until(lambda: len(server.requests) > count + 1)  # noqa: B023
            torch.testing.assert_close(values(rule(given)), wanted)
        assert len(server.requests) > asked + 50
        assert rule.versions == {"1": 50}


ACTION = {"name": "action", "datatype": "FP32", "shape": [2, 2], "data": [0.5, -0.5, 1.0, -1.0]}


def answer(**changes: Any) -> bytes:
    return json.dumps({"model_version": "1", "outputs": [{**ACTION, **changes}]}).encode()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"outputs": []}',
        b"[" * 100_000,
        answer(name="other"),
        answer(datatype="FP64"),
        answer(shape=[4, 1]),
        answer(data=[0.0] * 3),
        answer(data=[0.0] * 5),
        answer(data=[0.0, 0.0, 0.0, 2.0]),
        answer(data=[0.0, 0.0, 0.0, float("nan")]),
        answer(data=[0.0, 0.0, 0.0, "1"]),
        answer(data=[0, 0, 0, True]),
        answer(data=[[0.0, 0.0], [0.0, 0.0]]),
        answer(data=None),
        answer().replace(b"0.5", b"1e999"),
    ],
)
def test_an_inference_that_is_not_exactly_what_was_asked_for_is_none(said: bytes) -> None:
    assert read_actions(answer(), (2, 2)).tolist() == [[0.5, -0.5], [1.0, -1.0]]
    with pytest.raises(ExchangeFailedError):
        read_actions(said, (2, 2))


# The command line.

DISTILL = ("distill", "--task", "digits", "--teacher-epochs", "2", "--log-every", "5")


@pytest.mark.parametrize("mode", MODES)
def test_distill_under_a_controller_is_distill_under_the_file(tmp_path, service, teacher_cache, mode) -> None:
    words = (*DISTILL, "--epochs", "3")
    asked = ("--controller", service.url, "--controller-mode", mode, "--rule", "universal")
    asked = (*asked, "--controller-deadline", PATIENT)
    ended, out, err = finish(start(*words, *asked, "--out", tmp_path / "asked", cache=teacher_cache))
    assert (ended, err) == (0, "")
    assert "universal" in out
    ended, _, err = finish(start(*words, "--rule", "universal", "--out", tmp_path / "own", cache=teacher_cache))
    assert (ended, err) == (0, "")
    found, wanted = read_json(tmp_path / "asked" / "result.json"), read_json(tmp_path / "own" / "result.json")
    steps = found["controller"]["steps"]
    assert found["controller"]["versions"] == {"1": steps}
    assert steps == 60
    assert (found["controller"]["model"], found["controller"]["mode"]) == ("universal", mode)
    assert (found["fallback_steps"], found["degraded"], found["controller"]["away"]) == (0, False, False)
    assert "controller" not in wanted
    if mode == "weights":  # in process: to the last bit
        assert found["test_accuracy"] == wanted["test_accuracy"]
    assert found["test_accuracy"] == pytest.approx(wanted["test_accuracy"], abs=0.005)
    config = read_json(tmp_path / "asked" / "config.json")
    assert config["controller"] == service.url
    assert "controller_token_file" not in config
    seen = curves(tmp_path / "asked")
    for tag in ("temperature/student_mean", "temperature/teacher_mean"):
        first, second = seen[tag], curves(tmp_path / "own")[tag]
        assert [value for _, value in first] == pytest.approx([value for _, value in second], rel=0.02)
    assert {tag for tag in seen if tag.startswith("controller/")} == {
        "controller/fallback_steps",
        "controller/open",
        "controller/policy_version",
        *(["controller/round_trip_ms"] if mode == "features" else []),
    }


def test_a_run_without_its_controller_is_degraded_and_cannot_be_repeated(gone, tmp_path, teacher_cache) -> None:
    words = (*DISTILL, "--epochs", "12", "--controller", gone.url, "--rule", "universal", "--out", tmp_path / "run")
    process = start(*words, cache=teacher_cache)
    kill_after_a_checkpoint(process, tmp_path / "run" / "checkpoints", 0.1)
    ended, out, err = finish(start(*words, cache=teacher_cache))
    assert ended == 0
    assert "Resumed at step" in out
    assert err.count("\n") == 1
    assert "without one under fixed:4" in err
    found = read_json(tmp_path / "run" / "result.json")
    assert found["fallback_steps"] == found["controller"]["fallback_steps"] == found["controller"]["steps"] == 240
    assert (found["degraded"], found["controller"]["away"]) == (True, True)
    assert "240 steps without one" in found["inexact_resume"]


def test_a_killed_run_whose_controller_has_one_version_goes_on_exactly(tmp_path, service, teacher_cache) -> None:
    words = (*DISTILL, "--epochs", "12", "--controller", service.url, "--rule", "universal")
    assert finish(start(*words, "--out", tmp_path / "whole", cache=teacher_cache))[0] == 0
    process = start(*words, "--out", tmp_path / "run", cache=teacher_cache)
    kill_after_a_checkpoint(process, tmp_path / "run" / "checkpoints", 0.1)
    ended, out, err = finish(start(*words, "--out", tmp_path / "run", cache=teacher_cache))
    assert (ended, err) == (0, "")
    assert "Resumed at step" in out
    assert (tmp_path / "run" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(tmp_path, service: Served, capsys) -> None:
    secret = "hunter2-hunter2-hunter2"
    host = service.url.removeprefix("http://")
    for words, needed, status in (
        (("--fallback", "fixed:4"), "go with --controller", 2),
        (("--controller-mode", "features"), "goes with --controller", 2),
        (("--controller", f"http://me:{secret}@{host}"), "user:password", 2),
        (("--controller", service.url, "--rule", "universl"), "404", 2),
        (("--controller", service.url, "--rule", "universal", "--fallback", "none"), "needs temperatures", 2),
        (("--controller", "http://127.0.0.1:9", "--rule", "universal", "--strict"), "strict", 4),
    ):
        assert code("distill", *words, "--out", tmp_path / "run") == status
        said = capsys.readouterr().err
        assert needed in said
        assert said.count("\n") == 1
        assert secret not in said
        assert not (tmp_path / "run").exists()


def test_a_configuration_cannot_make_a_fallback_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"controller": "http://127.0.0.1:9", "rule": "universal", "fallback": "antigravity:x"}))
    assert code("distill", "--config", file, "--out", tmp_path / "run") == 2
    assert "would import and run a module" in capsys.readouterr().err
