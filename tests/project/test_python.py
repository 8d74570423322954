"""Python's door: paths where a rule's file is meant, names where a task is, plain refusals, and what objects say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rltemp
from rltemp import BadInputError
from rltemp.data.tasks import load_task
from rltemp.loading import SHIPPED
from rltemp.policy.rule import Policy
from rltemp.training.preparation import prepare

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
SIGNALS = rltemp.Signals(LOGITS, 2 * LOGITS, torch.tensor([0]), progress=0.5)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return shutil.copyfile(SHIPPED["universal"], tmp_path / "policy.safetensors")


def test_a_path_of_a_policy_file_is_taken_wherever_its_name_is(policy: Path) -> None:
    expected = rltemp.load_rule(str(policy))(SIGNALS).teacher
    made: list[Callable[[Any], Any]] = [
        rltemp.load_rule,
        lambda path: rltemp.load_method(path).rule,  # type: ignore[union-attr]
        lambda path: rltemp.Controller(path).method.rule,
        Policy.load,
    ]
    for make in made:
        for path in (policy, str(policy)):
            assert torch.equal(make(path)(SIGNALS).teacher, expected)
    assert rltemp.load_method(policy).name == str(policy)


def test_commands_take_paths_and_one_rule_alone(policy: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"epochs": 1, "seeds": 2}
    row = rltemp.compare("toy", policy, tmp_path / "one", html=False, **few)["arms"][0]
    assert row["rule"] == str(policy)
    two = rltemp.compare("toy", ["none", policy], tmp_path / "two", html=False, **few)["arms"]
    assert [one["rule"] for one in two] == ["none", str(policy)]
    student = rltemp.distill("toy", policy, tmp_path / "student", epochs=1)
    assert student == rltemp.distill("toy", str(policy), tmp_path / "student", epochs=1)
    assert "relations" in rltemp.explain("toy", policy, tmp_path / "why", importance_seeds=0, **few)


def test_a_tasks_name_is_taken_where_a_task_is() -> None:
    assert prepare("toy").task == prepare(load_task("toy")).task
    with pytest.raises(BadInputError, match="unknown task 'toi': did you mean 'toy'"):
        prepare("toi")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rltemp.load_rule(5), "a method is given by its name, or by the path of its file; got 5"),
        (lambda: rltemp.load_method(None), "a method is given by its name, or by the path of its file; got None"),
        (lambda: rltemp.Controller(5), "5 is no temperature rule; needed: a function of rltemp.Signals"),
        (lambda: rltemp.Method("m", 5), "5 is no temperature rule; needed: a function of rltemp.Signals"),
        (lambda: rltemp.kd_loss(LOGITS, LOGITS), "kd_loss needs rltemp.Signals and rltemp.Temperatures; got Tensor"),
        (lambda: rltemp.kd_loss(SIGNALS, 4.0), "got Signals and float"),
        (lambda: rltemp.Signals(LOGITS.numpy(), LOGITS), "student_logits must be a tensor; got ndarray"),
        (lambda: rltemp.Signals(LOGITS, LOGITS, mask=[True]), "mask must be a tensor; got list"),
        (lambda: rltemp.load_rule(Path("no/policy.safetensors")), "no/policy.safetensors"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadInputError) as refused:
        call()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (SIGNALS, "Signals(1 samples of 4 classes, labels, progress=0.5)"),
        (
            rltemp.Signals(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)),
            "Signals(2 x 3 samples of 4 classes, progress=nan)",
        ),
        (rltemp.load_rule("fixed:4"), "<temperature rule fixed:4>"),
        (rltemp.load_rule("universal"), "<temperature rule universal.safetensors>"),
        (
            rltemp.Controller("dtkd:2").method,
            "Method('dtkd:2', <temperature rule dtkd>, ce_weight=1, kd_weight=3, plain_kd_weight=1, warmup=0.08333)",
        ),
        (load_task("wine").recipe, "epochs=30, batch_size=16, learning_rate=0.02"),
    ],
)
def test_objects_say_what_they_are(thing: object, words: str) -> None:
    assert words in repr(thing)
    assert "None" not in repr(thing)
