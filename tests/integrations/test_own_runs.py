"""A loop of somebody else's whose runs train a policy: in this process, and through a service."""

from __future__ import annotations

import ast
import math
import os
import re
import runpy
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support import page_names
from support.hosts import ROOT, run_block
from support.processes import Process, finish, until
from torch import Tensor

import rltemp
from rltemp.agents.config import LearningOptions
from rltemp.errors import ArtifactRefusedError, BadInputError, TrainingStoppedError
from rltemp.integrations.own_runs import OWN_DEFAULTS
from rltemp.loading import load_method

FEW = {"students_per_update": 8, "exploration": 0.2}
CLASSES, BATCH = 5, 32
PAGE = "../own-loop"


def learning(folder: Path, method: str = "fixed:4", **options: Any) -> rltemp.Controller:
    return rltemp.Controller(method, learn=folder, **{**FEW, **options})


def logits(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of both networks, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, CLASSES, generator=generator)
    return student.requires_grad_(), teacher, torch.randint(0, CLASSES, shape, generator=generator)


def cooled(controller: rltemp.Controller, seed: int) -> float:
    """A run whose metric is the higher, the lower the student's temperature is: from 0 to 1."""
    student, teacher, labels = logits(seed, BATCH)
    controller.loss(student, teacher, labels, progress=0.5).mean().backward()
    return 1 / (1 + float(controller.temperatures(student, teacher, labels, progress=0.5).student.mean()))


def loop(controller: rltemp.Controller, count: int, run: Callable[..., float] = cooled, **order: int) -> list[int]:
    """The loop of the page; the seeds that it trained."""
    seeds = []
    for seed in controller.runs(count, **order):
        controller.report(run(controller, seed))
        seeds.append(seed)
    return seeds


def temperature(controller: rltemp.Controller) -> float:
    return 1 / cooled(controller, seed=999) - 1


def test_the_policy_does_what_the_metric_wants_and_its_opposite_does_not(tmp_path: Path) -> None:
    loop(learning(tmp_path / "low", learning_rate=0.05), 64)
    loop(learning(tmp_path / "high", learning_rate=0.05), 64, lambda *run: 1 - cooled(*run))
    low, high = (
        temperature(rltemp.Controller(str(tmp_path / name / "policy.safetensors"))) for name in ("low", "high")
    )
    assert low < 3
    assert high > 5


def test_before_the_first_update_the_policy_is_what_it_began_as(tmp_path: Path) -> None:
    learning(tmp_path / "formula")
    student, teacher, labels = logits(3, BATCH)
    found = rltemp.Controller(str(tmp_path / "formula" / "policy.safetensors"))
    torch.testing.assert_close(
        found.loss(student, teacher, labels, 0.5), rltemp.Controller("fixed:4").loss(student, teacher, labels, 0.5)
    )
    learning(tmp_path / "policy", "universal").save(tmp_path / "saved.safetensors")
    found = rltemp.Controller(str(tmp_path / "saved.safetensors"))
    torch.testing.assert_close(
        found.loss(student, teacher, labels, 0.5), rltemp.Controller("universal").loss(student, teacher, labels, 0.5)
    )


def test_the_runs_of_a_seed_are_mirrored_and_other_seeds_draw_otherwise(tmp_path: Path) -> None:
    controller, mean = learning(tmp_path), torch.zeros(27)
    student, teacher, labels = logits(0, BATCH)
    drawn = []
    for seed, number in ((0, 0), (0, 1), (0, 2), (1, 0)):
        controller.begin(seed, number)
        controller.loss(student, teacher, labels, 0.5)
        policy = controller.method.rule.inner
        drawn.append(torch.cat([policy._weights[f"0.{kind}"].flatten() for kind in ("weight", "bias")]))
    torch.testing.assert_close(drawn[0], mean - drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert drawn[0].std() == pytest.approx(0.2, rel=0.5)


def test_the_same_seeds_give_the_same_policy_to_the_last_byte(tmp_path: Path) -> None:
    policies = []
    for name in ("a", "b", "other seeds"):
        loop(learning(tmp_path / name), 16, first_seed=100 * (name == "other seeds"))
        policies.append((tmp_path / name / "policy.safetensors").read_bytes())
    assert policies[0] == policies[1]
    assert policies[0] != policies[2]


def test_a_loop_draws_nothing_from_the_global_generators(tmp_path: Path) -> None:
    loop(learning(tmp_path), 4)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    loop(learning(tmp_path), 16)
    assert torch.equal(torch.rand(3), wanted)


def test_a_killed_loop_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    loop(learning(tmp_path / "whole"), 24)
    killed = Process(lambda: loop(learning(tmp_path / "killed"), 24, killed_in_seed_6))
    assert finish(killed)[0] == -signal.SIGKILL
    assert loop(learning(tmp_path / "killed"), 24) == [6, 6, *sorted(2 * [*range(7, 12)])]
    policies = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("whole", "killed")]
    assert policies[0] == policies[1]


def killed_in_seed_6(controller: rltemp.Controller, seed: int) -> float:
    metric = cooled(controller, seed)
    if seed == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return metric


def test_a_finished_loop_is_done_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    assert len(loop(learning(tmp_path), 8)) == 8
    before = (tmp_path / "policy.safetensors").read_bytes()
    assert loop(learning(tmp_path), 8) == []
    assert (tmp_path / "policy.safetensors").read_bytes() == before
    assert loop(learning(tmp_path), 16) == [4, 4, 5, 5, 6, 6, 7, 7]
    assert (tmp_path / "policy.safetensors").read_bytes() != before


def test_a_run_without_a_report_is_forgotten_and_nobody_waits(tmp_path: Path) -> None:
    controller = learning(tmp_path)
    for number, seed in enumerate(controller.runs(20)):
        metric = cooled(controller, seed)
        if number != 1:
            controller.report(metric)
    assert controller.counts == {"reported": 19, "forgotten": 1, "fallback": 0}
    assert controller._runs.learner.learner.runs == 16, "two updates of eight runs with a partner"


def test_what_the_policy_saw_is_reported_without_what_a_mask_hides(tmp_path: Path) -> None:
    seen = []
    for masked in (False, True):
        controller = learning(tmp_path / str(masked))
        student, teacher, labels = logits(0, 4, 6)
        mask = torch.ones(4, 6, dtype=torch.bool)
        if masked:
            student, teacher, labels = (torch.cat([each, each[:2] * 0 + 1]) for each in (student, teacher, labels))
            mask = torch.cat([mask, torch.zeros(2, 6, dtype=torch.bool)])
        controller.begin(0)
        controller.kd(student, teacher, labels, 0.5, mask)
        controller.report(0.5)
        (book,) = controller._runs.learner.ledger.state().values()
        seen.append(book["record"]["observation"])
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)


def test_a_student_that_is_broken_from_the_start_is_reported_too(tmp_path: Path) -> None:
    controller = learning(tmp_path)
    for seed in controller.runs(8):
        student, teacher, labels = logits(seed, BATCH)
        controller.loss(student * math.nan, teacher, labels, 0.5)
        controller.report(0.0)
    assert controller._runs.learner.version == 2


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (math.nan, r"from 0 to 1 \(accuracy\), higher is better; got nan. Report 0 for a run that diverged"),
        (93.5, r"from 0 to 1 \(accuracy\), higher is better; got 93.5"),
        (-0.1, "got -0.1"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_and_the_run_stays_open(metric: float, message: str, tmp_path: Path) -> None:
    controller = learning(tmp_path)
    controller.begin(0)
    found = cooled(controller, 0)
    with pytest.raises(BadInputError, match=message):
        controller.report(metric)
    controller.report(found)
    assert controller.counts["reported"] == 1


def test_minus_a_loss_is_a_metric_where_the_potential_says_so(tmp_path: Path) -> None:
    controller = learning(tmp_path, potential="log_likelihood")
    loop(controller, 8, lambda *run: -cooled(*run))
    assert controller._runs.learner.version == 2


def test_calls_at_the_wrong_time_are_refused_in_one_line(tmp_path: Path) -> None:
    controller = learning(tmp_path)
    with pytest.raises(BadInputError, match="none is open: call begin"):
        cooled(controller, 0)
    with pytest.raises(BadInputError, match="none was begun"):
        controller.report(0.5)
    controller.begin(0)
    with pytest.raises(BadInputError, match="never asked the controller"):
        controller.report(0.5)
    controller.report(cooled(controller, 0))
    with pytest.raises(BadInputError, match="none is open: call begin"):
        cooled(controller, 0)
    with pytest.raises(BadInputError, match="run 0 of seed 0 was reported before"):
        controller.begin(0)
    with pytest.raises(BadInputError, match="seed and a number of 0 or more"):
        controller.begin(-1)
    with pytest.raises(BadInputError, match="2 or more of a seed"):
        next(controller.runs(4, per_seed=1))
    with pytest.raises(BadInputError, match="does not learn: make it with learn="):
        rltemp.Controller("dtkd").begin(0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("fixed:4", {"exploratoin": 0.1}, "unknown option of learn= 'exploratoin': did you mean 'exploration'"),
        ("fixed:4", {"exploration": -1.0}, "exploration"),
        ("fixed:4", {"potential": "f1"}, "unknown potential 'f1'"),
        ("fixed:4", {"start": "universal"}, "unknown option of learn= 'start'"),
        ("fixd:4", {}, "fixd"),
        ("nowhere/policy.safetensors", {}, "policy.safetensors"),
        (load_method("fixed:4"), {}, "a method by name"),
    ],
)
def test_options_that_cannot_be_leave_no_folder(method: Any, options: dict[str, Any], message: str, tmp_path) -> None:
    with pytest.raises(BadInputError, match=message):
        rltemp.Controller(method, learn=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_options_without_learn_are_refused() -> None:
    with pytest.raises(BadInputError, match="without learn= has no options; got exploration"):
        rltemp.Controller("dtkd", exploration=0.1)


def test_a_folder_keeps_its_settings_and_one_learner_has_it(tmp_path: Path) -> None:
    first = learning(tmp_path)
    with pytest.raises(ArtifactRefusedError, match=r"exploration 0\.2 -> 0\.3.*another learn="):
        learning(tmp_path, exploration=0.3)
    first.begin(0)
    metric = cooled(first, 0)
    second = learning(tmp_path)
    with pytest.raises(BadInputError, match="another controller of this process learns in"):
        first.report(metric)
    loop(second, 2)


def test_a_policy_that_no_learner_wrote_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(b"trained for hours")
    with pytest.raises(BadInputError, match="that no learner wrote there"):
        learning(tmp_path)
    assert (tmp_path / "policy.safetensors").read_bytes() == b"trained for hours"


def test_a_second_process_on_a_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    def work() -> None:
        from rltemp.io import locks

        locks._held.clear()  # what the fork brought along is its parent's
        learning(tmp_path)

    learning(tmp_path)
    code, _, said = finish(Process(work))
    assert code != 0
    assert "is in use by process" in said
    assert "choose another learn=" in said


# The page


def test_a_loop_that_is_run_again_has_nothing_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = page_names.loop(tmp_path)
    assert run_block(PAGE, **names)["controller"].counts["reported"] == 64
    assert run_block(PAGE, **names)["controller"].counts["reported"] == 0


def test_the_page_lists_the_options_with_their_defaults() -> None:
    text = (ROOT / "docs" / "own-loop.md").read_text("utf-8").partition("## The folder")[0]
    table = re.findall(r"^\| `(\w+)` \| `?(.+?)`? \|", text, re.MULTILINE)
    defaults = {**asdict(LearningOptions()), **OWN_DEFAULTS}
    of_the_method = {"start", "reference", "keep_weights"}
    assert {name: ast.literal_eval(value) for name, value in table} == {
        name: value for name, value in defaults.items() if name not in of_the_method
    }


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--negate"]])
def test_the_policy_of_the_script_is_better_by_true_metrics_alone(
    words: list[str], tmp_path: Path, capsys: Any
) -> None:
    runpy.run_path(str(ROOT / "scripts" / "own_loop.py"))["main"](["--out", str(tmp_path), *words])
    low, high = (float(end) for end in re.findall(r"\[([-+.\d]+), ([-+.\d]+)\] points", capsys.readouterr().out)[0])
    assert (low > 0) is (not words)
    assert (high < 0) is bool(words)


# Through a service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("fastapi", reason="rltemp[serve] is not installed")
    from support.services import serving

    words = ("--learning.students-per-update", 8, "--learning.exploration", 0.2, "--learning.potential", "accuracy")
    with serving("--learn", "mine", "--state", tmp_path / "state", *words) as served:
        yield served


def test_a_loop_trains_the_policy_of_a_service(service: Any, tmp_path: Path) -> None:
    controller = rltemp.Controller("mine", learn=service.url)
    assert len(loop(controller, 32)) == 32
    path = "/v2/models/mine/versions/5/policy"
    until(lambda: service.request("GET", path)[0] == 200)
    controller.save(tmp_path / "saved.safetensors")
    assert (tmp_path / "saved.safetensors").read_bytes() == service.request("GET", path)[2]
    assert controller._runs.learner.counts == {"accepted": 32, "known": 0, "stale": 0}
    assert controller.counts == {"reported": 32, "forgotten": 0, "fallback": 0}


def test_a_service_that_is_away_stops_no_loop_and_is_counted(service: Any, caplog: Any) -> None:
    service.process.send(signal.SIGKILL)
    service.process.finish()
    controller = rltemp.Controller("mine", learn=service.url, fallback="fixed:3")
    student, teacher, labels = logits(0, BATCH)
    for _ in controller.runs(2):
        assert set(controller.temperatures(student, teacher, labels, 0.5).student.tolist()) == {3.0}
        controller.report(0.5)
    assert controller.counts == {"reported": 0, "forgotten": 0, "fallback": 2}
    assert [record.message for record in caplog.records if "Runs go on; their reports wait" in record.message]
    with pytest.raises(TrainingStoppedError, match="strict"):
        rltemp.Controller("mine", learn=service.url, strict=True)


def test_a_service_that_goes_away_gets_the_reports_when_it_is_back(service: Any) -> None:
    controller = rltemp.Controller("mine", learn=service.url)
    loop(controller, 2)
    service.process.send(signal.SIGSTOP)
    loop(controller, 2, first_seed=1)
    service.process.send(signal.SIGCONT)
    until(lambda: controller._runs.learner.counts["accepted"] == 4)


def test_a_model_that_is_not_learned_and_other_options_are_refused(service: Any) -> None:
    with pytest.raises(BadInputError, match="the service needs --learn other"):
        rltemp.Controller("other", learn=service.url)
    with pytest.raises(BadInputError, match="unknown option of learn= 'exploration'"):
        rltemp.Controller("mine", learn=service.url, exploration=0.1)
    with pytest.raises(BadInputError, match="cannot be asked"):
        rltemp.Controller("mine", learn="ftp://127.0.0.1")
