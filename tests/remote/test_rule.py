"""The remote rule is the server's policy, to 1e-6 and with the same gradient, and says when it was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policies import random_policy
from support.processes import code, curves, finish, kill_after_a_checkpoint, start
from support.raw_server import RawServer, answers, http
from torch import Tensor

pytest.importorskip("fastapi", reason="needs rltemp[serve]")
pytest.importorskip("uvicorn", reason="needs rltemp[serve]")

import uvicorn
from support.services import Served, serving

from rltemp import Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.errors import BadInputError, ExchangeFailedError, TrainingStoppedError
from rltemp.policy.policy_file import read_policy
from rltemp.remote.answers import Controller
from rltemp.remote.breaker import Patience
from rltemp.remote.counts import FURTHER, MOST_VERSIONS, RemoteCounts
from rltemp.remote.rule import RemoteRule, remote_method
from rltemp.remote.wire import answer
from rltemp.service.app import Service
from rltemp.service.repository import Repository

MODES = ("features", "weights")
PATIENT = 5.0  # seconds, on a machine that may be busy; what a deadline does is test_fault_controller.py's
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "of-logits": {"reference": "dtkd:reference=2", "features": ("student_margin", "student_loss")},
    "full": {"reference": "fixed:2", "balanced": True, "weight_ratio": 2.0},
}


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


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def signals(*shape: int, seed: int = 0, **fields: Any) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    dtype = fields.pop("dtype", torch.float32)
    student, teacher = (4 * torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    return Signals(student.requires_grad_(), teacher, labels, 0.3, **fields)


def values(found: Temperatures) -> Tensor:
    return torch.stack([found.student, found.teacher, found.weight]).detach()


def gradient(rule: Callable[[Signals], Temperatures], given: Signals) -> Tensor:
    return torch.autograd.grad(kd_loss(given, rule(given)).sum(), given.student_logits)[0]


SHAPES: dict[str, dict[str, Any]] = {
    "a batch": {"shape": (50, 10)},
    "one sample": {"shape": (1, 3)},
    "a token batch": {"shape": (4, 7, 5)},
    "a stack": {"shape": (3, 8, 10), "stacked": True},
    "a mask": {"shape": (4, 6, 5), "mask": torch.arange(24).view(4, 6) % 3 > 0},
    "a mask without a sample": {"shape": (2, 3, 5), "mask": torch.zeros(2, 3, dtype=torch.bool)},
    "float64": {"shape": (6, 4), "dtype": torch.float64},
    "no sample": {"shape": (0, 4)},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*KINDS, "universal"])
def test_it_is_the_servers_policy_to_a_millionth_and_not_its_fallback(
    service: Served, policies: dict[str, Path], name: str, mode: Any
) -> None:
    local = load_rule(str(policies.get(name, name)))
    with RemoteRule(service.url, name, mode=mode, deadline=PATIENT) as remote:
        for label, fields in SHAPES.items():
            given = signals(*fields["shape"], **{key: value for key, value in fields.items() if key != "shape"})
            found, wanted = values(remote(given)), values(local(given))
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6, msg=label)
            if label in ("a batch", "a stack", "a mask"):
                fallback = values(load_rule(remote.fallback.name)(given))
                assert not torch.allclose(found, fallback, rtol=1e-2), "the policy does nothing here"
                torch.testing.assert_close(gradient(remote, given), gradient(local, given), rtol=1e-4, atol=1e-6)
        counts = remote.counts()
    assert counts["fallback_steps"] == counts["failures"] == counts["openings"] == 0
    assert counts["versions"].keys() == {"1"}
    assert len(counts["sha256"]) == 64
    if mode == "features":
        assert counts["calls"] == counts["versions"]["1"] > len(SHAPES)
    else:
        assert counts["calls"] == 0
        assert counts["versions"]["1"] == counts["steps"] > len(SHAPES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dtkd:reference=2", "cswt", "fixed:3"])
def test_a_closed_form_rule_at_the_controller_is_the_one_here(service: Served, name: str, mode: Any) -> None:
    with RemoteRule(service.url, name, mode=mode, deadline=PATIENT) as remote:
        for label in ("a batch", "a token batch", "a mask", "float64", "no sample"):
            given = signals(*SHAPES[label]["shape"], **{k: v for k, v in SHAPES[label].items() if k != "shape"})
            if label != "no sample":
                torch.testing.assert_close(values(remote(given)), values(load_rule(name)(given)), rtol=1e-6, atol=1e-6)
            assert remote(given).student.shape == given.shape
        counts = remote.counts()
        assert counts["fallback_steps"] == 0
        assert (counts["calls"] > 0) is (mode == "features")
        if mode == "features":
            with pytest.raises(BadInputError, match="no stack"):
                remote(signals(2, 3, 4, stacked=True))


def test_the_method_has_the_loss_weights_of_the_policys_reference(service: Served) -> None:
    method = remote_method(service.url, "dtkd", deadline=PATIENT)
    wanted = load_method("dtkd")
    assert (method.ce_weight, method.plain_kd_weight, method.warmup) == (
        wanted.ce_weight,
        wanted.plain_kd_weight,
        wanted.warmup,
    )
    given = signals(9, 4)
    policy = remote_method(service.url, "universal", deadline=PATIENT)
    torch.testing.assert_close(policy.loss(given), load_method("universal").loss(given))
    assert isinstance(policy.rule, RemoteRule)
    assert policy.rule.limits == load_method("universal").rule.limits  # type: ignore[union-attr]
    for each in (method, policy):
        each.rule.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", MODES)
def test_a_new_version_takes_effect_between_steps_and_is_counted(
    own_service: str, repository: Repository, tmp_path: Path, mode: Any
) -> None:
    second = random_policy(tmp_path / "second.safetensors", 6, seed=2)
    with RemoteRule(own_service, "learned", mode=mode, deadline=PATIENT, follow=0.02) as remote:
        before = values(remote(signals(5, 4)))
        seen = remote.seen.versions
        assert seen.keys() == {"1"}
        repository.publish("learned", second.read_bytes(), "2")
        until(lambda: remote(signals(5, 4)) and "2" in seen)
        now = values(remote(signals(5, 4)))
        until(lambda: remote.counts()["sha256"] == repository.find("learned").sha256)  # type: ignore[union-attr]
        assert remote.scalars()["controller/policy_version"] == 2
        assert remote.counts()["fallback_steps"] == 0
        assert not remote.seen.repeatable
    torch.testing.assert_close(now, values(load_rule(str(second))(signals(5, 4))), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(now, before)


def test_the_three_lines_of_the_manual_train_under_the_service(service: Served) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    section = manual.split("## From a training run")[1]
    lines = section.split("```python\n")[1].split("```")[0].replace("http://127.0.0.1:8000", service.url)
    names: dict[str, Any] = {"signals": signals(6, 4)}
    exec(compile(lines, "service.md", "exec"), names)
    torch.testing.assert_close(names["loss"], load_method("universal").loss(names["signals"]).mean())
    assert names["method"].rule.counts()["steps"] == 1
    names["method"].rule.close()


def test_every_answer_is_whole_while_versions_change(own_service: str, repository: Repository, tmp_path: Path) -> None:
    """Policies around other references, by other features of one number: no step mixes two."""
    files = [
        random_policy(tmp_path / f"{index}.safetensors", 6, seed=index, reference=f"fixed:{index + 2}")
        for index in range(6)
    ]
    given, name = signals(5, 4), "mixed"
    repository.publish(name, files[0].read_bytes(), "1")
    wanted = [values(load_rule(str(file))(given)) for file in files]
    with RemoteRule(own_service, name, mode="weights", deadline=PATIENT, follow=0.005) as remote:
        for version, file in enumerate(files[1:], 2):
            repository.publish(name, file.read_bytes(), str(version))
            until(lambda: remote(given) and len(remote.seen.versions) == version)  # noqa: B023
            found = values(remote(given))
            assert any(torch.allclose(found, each, rtol=1e-6) for each in wanted)
    torch.testing.assert_close(found, wanted[-1])


def test_weights_are_pulled_once_and_then_only_asked_after(own_service: str, repository: Repository) -> None:
    """What the ETag is for; the service says what it sent."""
    with RemoteRule(own_service, "learned", mode="weights", deadline=PATIENT, follow=0.01) as remote:
        remote(signals(2, 3))
        time.sleep(0.3)
        exchange = remote._controller.exchange
        text = exchange.ask("GET", "/metrics", deadline=PATIENT).body.decode()
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    sent = sum(n for key, n in counted.items() if "policy" in key and 'code="200"' in key and "_total" in key)
    unchanged = sum(n for key, n in counted.items() if "policy" in key and 'code="304"' in key and "_total" in key)
    assert (sent, unchanged > 3) == (1, True), text


@pytest.mark.parametrize("mode", MODES)
def test_a_mistake_is_said_before_the_run_begins(service: Served, mode: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"controller http://127.0.0.1:\d+ \(universl\): it answers 404"):
        RemoteRule(service.url, "universl", mode=mode)
    for options, needed in (
        ({"fallback": "none"}, "needs temperatures"),
        ({"fallback": "ctkd"}, "does not learn"),
        ({"fallback": "fixd"}, "did you mean 'fixed'"),
        ({"token_file": tmp_path / "none"}, "cannot read the token file"),
        ({"deadline": 0.0}, "above 0"),
        ({"mode": "guess"}, "features or weights"),
    ):
        with pytest.raises(BadInputError, match=needed):
            RemoteRule(service.url, "universal", **{"mode": mode, **options})
    with pytest.raises(BadInputError, match="user:password"):
        RemoteRule("http://me:secret@127.0.0.1:1", "universal")


def test_a_token_opens_the_service_and_a_wrong_one_is_a_mistake(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("0123456789abcdef-right\n")
    wrong.write_text("0123456789abcdef-wrong\n")
    for file in (right, wrong):
        file.chmod(0o600)
    with serving("--token-file", right) as served:
        with RemoteRule(served.url, "universal", token_file=right, deadline=PATIENT) as remote:
            remote(signals(3, 4))
            assert remote.counts()["fallback_steps"] == 0
        for file in (wrong, None):
            with pytest.raises(BadInputError, match="401") as refused:
                RemoteRule(served.url, "universal", token_file=file)
            assert "0123456789" not in str(refused.value)


def test_without_a_controller_the_run_starts_under_fixed_4_and_says_so_or_strictly_not_at_all() -> None:
    with RawServer() as gone:
        pass
    said: list[str] = []
    with RemoteRule(gone.url, "universal", tell=said.append) as remote:
        method, given = remote.method("universal"), signals(5, 4)
        torch.testing.assert_close(method.loss(given), load_method("fixed:4").loss(given))
        assert remote.counts()["fallback_steps"] == remote.counts()["steps"] == 1
        assert remote.limits is None
    assert said == [
        f"controller {gone.url} (universal): it refuses the connection. The run starts under fixed:4, whose loss "
        "weights it keeps to its end"
    ]
    with RemoteRule(gone.url, "universal", fallback="dtkd") as remote:
        torch.testing.assert_close(remote.method("x").loss(given), load_method("dtkd").loss(given))
    with pytest.raises(TrainingStoppedError, match="refuses the connection"):
        RemoteRule(gone.url, "universal", strict=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_controller_that_comes_later_is_followed_and_the_loss_weights_stay(mode: Any) -> None:
    with RawServer() as gone:
        pass
    said: list[str] = []
    patience = Patience(PATIENT, shortest=0.02, longest=0.1)
    with RemoteRule(gone.url, "universal", mode=mode, deadline=PATIENT, patience=patience, tell=said.append) as remote:
        method, given = remote.method("universal"), signals(5, 4)
        plain = load_method("fixed:4")
        torch.testing.assert_close(method.loss(given), plain.loss(given))
        with serving("--port", gone.port):
            until(lambda: remote.breaker.closed)
            torch.testing.assert_close(values(remote(given)), values(load_rule("universal")(given)))
            assert (method.ce_weight, method.kd_weight) == (plain.ce_weight, plain.kd_weight)
            assert remote.limits is not None
            counts = remote.counts()
    assert (counts["fallback_steps"], counts["versions"], counts["openings"]) == (1, {"1": 1}, 1)
    assert said[1:] == [f"controller {gone.url} (universal): it is back"]


@pytest.mark.parametrize("mode", MODES)
def test_a_given_fallback_stands_in_and_strictly_nothing_does(policies: dict[str, Path], mode: Any) -> None:
    given = signals(5, 4)
    with serving("--models", f"dtkd-like={policies['of-logits']}") as served:
        rules = [
            RemoteRule(served.url, "dtkd-like", deadline=PATIENT, **options)
            for options in ({}, {"fallback": "fixed:7"}, {"strict": True})
        ]
        pulled = RemoteRule(served.url, "dtkd-like", mode="weights")
        weights = rules[1].method("x")
    own, other, strict = rules
    torch.testing.assert_close(values(own(given)), values(load_rule("dtkd:reference=2")(given)))
    torch.testing.assert_close(values(other(given)), values(load_rule("fixed:7")(given)))
    assert weights.plain_kd_weight == load_method("dtkd").plain_kd_weight  # the objective stays the policy's
    with pytest.raises(TrainingStoppedError, match="strict"):
        strict(given)
    torch.testing.assert_close(values(pulled(given)), values(load_rule(str(policies["of-logits"]))(given)))
    assert pulled.counts()["fallback_steps"] == 0
    for rule in (*rules, pulled):
        rule.close()


def test_numbers_that_are_not_finite_are_not_sent_and_nobody_is_blamed(service: Served) -> None:
    broken = signals(4, 5)
    broken.teacher_logits[2, 1] = float("nan")
    for name in ("universal", "dtkd"):
        with RemoteRule(service.url, name, deadline=PATIENT) as remote:
            remote(broken)
            assert remote.counts()["calls"] == remote.counts()["failures"] == 0
            assert remote.counts()["fallback_steps"] == 1
            remote(signals(4, 5))
            assert remote.counts()["versions"] == {"1": 1}


def test_a_fork_goes_on_asking(service: Served) -> None:
    with RemoteRule(service.url, "universal", deadline=PATIENT) as remote:
        wanted = values(remote(signals(3, 4)))
        if (child := os.fork()) == 0:
            result = 1
            with contextlib.suppress(BaseException):
                result = 0 if torch.equal(values(remote(signals(3, 4))), wanted) and remote.seen.repeatable else 2
            os._exit(result)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        remote(signals(3, 4))
        assert remote.counts()["versions"] == {"1": 2}


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"{",
        b'{"parameters": {"kind": "policy"}}',
        b'{"versions": ["1"], "parameters": {"kind": "rule", "spec": "os:system"}}',
        b'{"versions": ["1"], "parameters": {"kind": "rule", "spec": "none"}}',
        b'{"versions": ["1"], "parameters": {"kind": "rule", "spec": "my_module:rule"}}',
        b'{"versions": ["../1"], "parameters": {"kind": "rule", "spec": "dtkd"}}',
        b'{"versions": ["1"], "parameters": {"kind": "pickle", "spec": "dtkd"}}',
        b'{"versions": ["1"], "parameters": {"kind": "policy", "version": "1", "sha256": "0", "manifest": "{}"}}',
        b"[" * 100_000,
        b'{"versions": ["1"]' + b" " * 600_000 + b"}",
        b"\xff\xfe",
    ],
)
def test_whatever_a_service_says_it_is_nothing_is_imported_and_the_run_begins(said: bytes) -> None:
    for mode in MODES:
        with RawServer(answers(http(said))) as server, RemoteRule(server.url, "dtkd", mode=mode) as remote:  # type: ignore[arg-type]
            given = signals(3, 4)
            torch.testing.assert_close(values(remote(given)), values(load_rule("fixed:4")(given)))
            assert remote.counts()["fallback_steps"] == 1


ANSWER = {"model_version": "1", "outputs": []}


@pytest.mark.parametrize(
    ("header", "tail"),
    [
        (ANSWER, b""),
        ({**ANSWER, "outputs": [{"name": "action", "datatype": "FP32", "shape": [2, 2], "data": [0, 0, 0, 0]}]}, b""),
        *[
            (
                {
                    **ANSWER,
                    "model_version": version,
                    "outputs": [
                        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": size}}
                    ],
                },
                tail,
            )
            for version, name, kind, shape, size, tail in [
                ("1", "action", "FP64", [2, 2], 16, b"\0" * 16),
                ("1", "action", "FP32", [2, 3], 24, b"\0" * 24),
                ("1", "action", "FP32", [2, 2], 16, b"\0" * 15),
                ("1", "action", "FP32", [2, 2], 24, b"\0" * 24),
                ("1", "action", "FP32", [2, 2], -16, b"\0" * 16),
                ("1", "action", "FP32", [2, 2], 10**9, b"\0" * 16),
                ("1", "action", "FP32", [2, 2], True, b"\0" * 16),
                ("1", "other", "FP32", [2, 2], 16, b"\0" * 16),
                ("1", "action", "FP32", [2, 2], 16, b"\0\0\xc0\x7f" * 4),
                ("1", "action", "FP32", [2, 2], 16, b"\0\0\x80\x7f" * 4),
                (None, "action", "FP32", [2, 2], 16, b"\0" * 16),
                ("a b", "action", "FP32", [2, 2], 16, b"\0" * 16),
            ]
        ],
    ],
)
def test_an_answer_that_is_not_exactly_what_was_asked_for_is_none(header: dict[str, Any], tail: bytes) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ExchangeFailedError):
        answer(text + tail, str(len(text)), {"action": (2, 2)})
    for length in (None, "", "-1", "x", "99999999999", str(len(text) + len(tail) + 1), "1"):
        with pytest.raises(ExchangeFailedError):
            answer(text + tail, length, {"action": (2, 2)})


def test_two_thousand_mutilated_answers_and_descriptions_are_failures_at_worst(
    policies: dict[str, Path],
) -> None:
    draw = random.Random(0)
    entry = {"name": "action", "datatype": "FP32", "shape": [4, 2], "parameters": {"binary_data_size": 32}}
    head = json.dumps({"model_version": "1", "outputs": [entry]}).encode()
    manifest = read_policy(policies["plain"]).manifest.to_json()
    told = {"kind": "policy", "manifest": manifest, "sha256": 64 * "0", "version": "1"}
    whole = json.dumps({"versions": ["1"], "parameters": told}).encode()

    def mutilated(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 20))):
            place = draw.randrange(len(changed))
            new = draw.choice((b"", b"[", b"{", b"null", b"1e999", b"-1", b"true", b"\xff", b'"', b"0"))
            changed[place : place + draw.randrange(8)] = new or bytes([draw.randrange(256)])
        return bytes(changed)

    taken = 0
    for _ in range(2000):
        with contextlib.suppress(ExchangeFailedError):
            answer(mutilated(head + bytes(32)), str(len(head)), {"action": (4, 2)})
            taken += 1
    with RawServer() as server:
        controller = Controller(server.url, "universal")
        for _ in range(300):
            server.behaviour = answers(http(mutilated(whole)))
            with contextlib.suppress(ExchangeFailedError):
                controller.describe(PATIENT)
                taken += 1
        server.behaviour = answers(http(whole))
        assert controller.describe(PATIENT).version == "1"
        controller.exchange.close()
    assert taken < 400  # some harm nothing


def test_versions_without_end_are_counted_in_bounded_room() -> None:
    counts = RemoteCounts()
    for version in range(MOST_VERSIONS + 50):
        counts.used(str(version))
    assert len(counts.versions) == MOST_VERSIONS + 1
    assert counts.versions[FURTHER] == 50
    assert RemoteCounts.restored(json.loads(json.dumps(counts.state()))) == counts


# The command line.

DISTILL = ("distill", "--task", "digits", "--teacher-epochs", "2", "--log-every", "5")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("mode", MODES)
def test_distill_under_a_controller_trains_the_student_that_it_trains_under_the_file(
    tmp_path: Path, service: Served, cache: Path, mode: str
) -> None:
    words = (*DISTILL, "--epochs", "3")
    asked = ("--controller", service.url, "--controller-mode", mode, "--rule", "universal")
    asked = (*asked, "--controller-deadline", PATIENT)
    ended, out, err = finish(start(*words, *asked, "--out", tmp_path / "asked", cache=cache))
    assert (ended, err) == (0, "")
    assert "universal" in out
    ended, _, err = finish(start(*words, "--rule", "universal", "--out", tmp_path / "own", cache=cache))
    assert (ended, err) == (0, "")
    found, wanted = read(tmp_path / "asked"), read(tmp_path / "own")
    steps = found["controller"]["steps"]
    assert found["controller"]["versions"] == {"1": steps}
    assert steps == 60
    assert (found["controller"]["model"], found["controller"]["mode"]) == ("universal", mode)
    assert (found["fallback_steps"], found["degraded"]) == (0, False)
    assert "controller" not in wanted
    assert found["test_accuracy"] == pytest.approx(wanted["test_accuracy"], abs=0.005)
    config = json.loads((tmp_path / "asked" / "config.json").read_text())
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


def test_a_run_without_its_controller_is_degraded_and_one_that_goes_on_says_that_it_cannot_be_repeated(
    tmp_path: Path, cache: Path
) -> None:
    with RawServer() as gone:
        pass
    words = (*DISTILL, "--epochs", "12", "--controller", gone.url, "--rule", "universal", "--out", tmp_path / "run")
    process = start(*words, cache=cache)
    kill_after_a_checkpoint(process, tmp_path / "run" / "checkpoints", 0.1)
    ended, out, err = finish(start(*words, cache=cache))
    assert ended == 0
    assert "Resumed at step" in out
    assert err.count("\n") == 1
    assert "The run starts under fixed:4" in err
    found = read(tmp_path / "run")
    assert found["fallback_steps"] == found["controller"]["fallback_steps"] == found["controller"]["steps"] == 240
    assert found["degraded"] is True
    assert found["controller"]["openings"] == 2
    assert "answers of a controller" in found["inexact_resume"]


def test_a_killed_run_whose_controller_answered_all_goes_on_exactly(
    tmp_path: Path, service: Served, cache: Path
) -> None:
    """In weights mode, where no busy machine can make an answer late."""
    words = (*DISTILL, "--epochs", "12", "--controller", service.url, "--rule", "universal")
    words = (*words, "--controller-mode", "weights")
    assert finish(start(*words, "--out", tmp_path / "whole", cache=cache))[0] == 0
    process = start(*words, "--out", tmp_path / "run", cache=cache)
    kill_after_a_checkpoint(process, tmp_path / "run" / "checkpoints", 0.1)
    ended, out, err = finish(start(*words, "--out", tmp_path / "run", cache=cache))
    assert (ended, err) == (0, "")
    assert "Resumed at step" in out
    assert (tmp_path / "run" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, service: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2-hunter2-hunter2"
    host = service.url.removeprefix("http://")
    for words, needed, status in (
        (("--fallback", "fixed:4"), "go with --controller", 2),
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
