"""The study's own controls (recorded ones, the greedy oracle), its methods, its words, and the command once."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import code
from torch import Tensor
from torch.nn import functional as F

from rltemp import BadInputError, Signals, Temperatures, load_method
from rltemp.data.problem import Problem, predict
from rltemp.data.tasks import load_task
from rltemp.experiments.compare import compare
from rltemp.experiments.grid import alternatives, check_rules
from rltemp.experiments.measures import LOSS
from rltemp.experiments.method_results import Comparison, MethodResult
from rltemp.experiments.recorded_controls import (
    GRID,
    chosen,
    constant,
    greedy,
    makers,
    marginal,
    probe_slope,
    recording_columns,
    scheduled,
)
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.study import CLOSED_FORM, MEANINGS, matched_forms, plan, record, verdict
from rltemp.kd.divergences import forward_kl
from rltemp.kd.method import uniform
from rltemp.rules.controls import gradient_lengths
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare

SEEDS = [3, 4, 5]


def even(progress: float = 0.0, batch: int = 4) -> Signals:
    logits = torch.randn(batch, 3, generator=torch.Generator().manual_seed(0))
    return Signals(logits, logits, progress=progress)


@pytest.fixture(scope="module")
def short_toy() -> Problem:
    return prepare(load_task("toy", epochs=1))


@pytest.fixture
def recording() -> Recorder:
    """Four steps: the rule was asked in the second and third, for two samples each."""
    made = Recorder(recording_columns, steps=4, points=400)
    made.begin()
    answers = (None, ([1.0, 4.0], [2.0, 8.0], [1.0, 3.0]), ([4.0, 16.0], [9.0, 1.0], [5.0, 7.0]), None)
    for step, answer in enumerate(answers):
        made.keep(even(step / 4, 2), None if answer is None else Temperatures(*map(torch.tensor, answer)))
    return made


def test_constant_is_the_geometric_mean_of_a_recording_worked_by_hand(recording: Recorder):
    # (1 4 4 16)^(1/4) = 4, (2 8 9 1)^(1/4) = sqrt 12, (1 + 3 + 5 + 7) / 4 = 4
    found = constant(recording)(even())
    torch.testing.assert_close(found.student, torch.full((4,), 4.0))
    torch.testing.assert_close(found.teacher, torch.full((4,), math.sqrt(12)))
    torch.testing.assert_close(found.weight, torch.full((4,), 4.0))


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, (2.0, 4.0, 2.0)), (0.25, (2.0, 4.0, 2.0)), (0.5, (8.0, 3.0, 6.0)), (0.75, (8.0, 3.0, 6.0))],
)
def test_schedule_is_the_mean_of_the_step_or_of_the_nearest_asked(recording, progress, expected):
    found = scheduled(recording)(even(progress))
    for value, wanted in zip((found.student, found.teacher, found.weight), expected, strict=True):
        torch.testing.assert_close(value, torch.full((4,), wanted))


def test_marginal_draws_whole_triples_as_often_as_they_were_recorded(recording: Recorder):
    signals = even(0.5, 4000)
    found = marginal(recording)(signals)
    triples = torch.stack([found.student, found.teacher, found.weight], -1)
    kinds, counts = triples.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[1.0, 2.0, 1.0], [4.0, 8.0, 3.0], [4.0, 9.0, 5.0], [16.0, 1.0, 7.0]]
    assert (counts - 1000).abs().max() < 250
    assert torch.equal(marginal(recording)(signals).student, found.student)
    assert not torch.equal(marginal(recording)(replace(signals, progress=0.75)).student, found.student)


def test_a_recording_holds_what_a_policy_answered_in_every_step(short_toy: Problem):
    made = record(short_toy, "dtkd:2", SEEDS, 2)
    assert {len(values) for values in made.course().values()} == {made.steps}
    samples = made.samples()
    assert samples["student"].shape[0] == len(SEEDS), "also of the stack that is not full"
    torch.testing.assert_close(samples["weight"], (samples["student"] + samples["teacher"]).exp(), rtol=1e-5, atol=0.0)
    assert min(made.course()["weight"]) > 0


def stack(problem: Problem, steps: int) -> Distillation:
    """Students after some steps of plain distillation."""
    run, method = Distillation(problem, SEEDS), load_method("fixed:4")
    for _ in range(steps):
        run.update(method.loss(run.observe()))
    return run


def probe_loss(run: Distillation) -> Tensor:
    """Of each student, float64."""
    probe = run.problem.dataset.probe
    logits = predict(run.student, run.problem, probe).double()
    labels = probe.labels.expand(logits.shape[:-1])
    return F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none").mean(-1)


def fall(problem: Problem, choose: Callable[[Signals, Tensor], Temperatures], rate: float = 2e-4) -> Tensor:
    """How much the probe loss of each student falls by one small step down the divergences alone, over its rate."""
    run = stack(problem, 20)
    before, signals = probe_loss(run), run.observe()
    answer = choose(signals, probe_slope(run))
    soft = replace(load_method("fixed:4"), ce_weight=0.0, kd_weight=1.0, rule=lambda _: answer)
    parameters = list(run.student.parameters())
    gradients = torch.autograd.grad(soft.loss(signals).mean(-1).sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
    return (before - probe_loss(run)) / rate


@pytest.mark.parametrize("held", [False, True])
def test_a_step_of_the_oracle_lowers_the_loss_most_and_its_opposite_least(digits: Problem, held: bool):
    best = fall(digits, lambda signals, slope: chosen(signals, slope, held))
    plain = fall(digits, lambda signals, slope: uniform(signals, 4.0))
    worst = fall(digits, lambda signals, slope: chosen(signals, -slope, held))
    assert (best > plain).all()
    assert (plain > worst).all()


def test_the_slope_is_the_quotient_of_differences_along_the_probe_gradient(digits: Problem):
    run = stack(digits, 5)
    slope, before = probe_slope(run), run.observe().student_logits.detach()
    assert slope.shape == before.shape
    run.student.eval()
    probe = digits.dataset.probe
    images = digits.dataset.batch(probe, torch.arange(len(probe))).inputs
    logits = run.student(images.expand(len(SEEDS), *images.shape))
    loss = F.cross_entropy(logits.movedim(-1, 1), probe.labels.expand(len(SEEDS), -1), reduction="none").mean(-1).sum()
    gradients = torch.autograd.grad(loss, list(run.student.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(run.student.parameters(), gradients, strict=True):
            parameter += 1e-3 * gradient
    quotient = (run.observe().student_logits.detach() - before) / 1e-3
    torch.testing.assert_close(slope, quotient, atol=0.02, rtol=0.02)


def test_the_oracle_chooses_from_its_grid_and_held_at_plain_lengths():
    generator = torch.Generator().manual_seed(0)
    student, teacher, slope = torch.randn(3, 2, 8, 5, generator=generator, dtype=torch.float64)
    signals = Signals(student, 3 * teacher, stacked=True)
    free, held = chosen(signals, slope, False), chosen(signals, slope, True)
    for found in (free, held):
        assert torch.isin(found.student, torch.tensor(GRID, dtype=torch.float64)).all()
        assert torch.isin(found.teacher, torch.tensor(GRID, dtype=torch.float64)).all()
    torch.testing.assert_close(free.weight, free.student * free.teacher)
    plain = gradient_lengths(signals, lambda seen: uniform(seen, 4.0), forward_kl)
    torch.testing.assert_close(gradient_lengths(signals, lambda seen: held, forward_kl), plain)
    for choice in (free, held):  # no pair of the grid does better for any sample
        for a in GRID:
            for b in GRID:
                pair = Temperatures(signals.full(a), signals.full(b), signals.full(a * b))
                assert (
                    benefit(signals, slope, pair, choice is held)
                    <= benefit(signals, slope, choice, choice is held) + 1e-9
                ).all()


def benefit(signals: Signals, slope: Tensor, found: Temperatures, by_length: bool) -> Tensor:
    q = (signals.student_logits / found.student.unsqueeze(-1)).softmax(-1)
    p = (signals.teacher_logits / found.teacher.unsqueeze(-1)).softmax(-1)
    gradient = (found.weight / found.student).unsqueeze(-1) * (q - p)
    return (gradient * slope).sum(-1) / (gradient.norm(dim=-1) if by_length else 1.0)


def test_the_oracle_answers_once_a_step_even_if_a_method_asks_twice(digits: Problem):
    run = Distillation(digits, SEEDS)
    rule = greedy(load_method("fixed:4"), held=False)(run).rule
    signals = run.observe()
    first = rule(signals)
    assert rule(signals) is first
    run.update(load_method("fixed:4").loss(signals))
    assert rule(run.observe()) is not first


def test_every_control_of_a_policy_is_made_at_both_weights(recording: Recorder, digits: Problem):
    made = makers("dtkd:2", load_method("dtkd:2"), recording)
    assert len(made) == 10
    run = Distillation(digits, SEEDS)
    for name, maker in made.items():
        assert maker(run).matched == name.startswith("matched:")
        assert name in plan(["dtkd:2"], ["controls"])


def test_every_method_is_among_the_closed_forms_and_can_be_built():
    assert {spec.partition(":")[0] for spec in CLOSED_FORM} == set(METHODS)
    check_rules([*CLOSED_FORM, *matched_forms()], [0])
    counts = {len(alternatives(spec)) for spec in CLOSED_FORM if not spec.startswith(("none", "fixed:1|"))}
    assert counts == {4}


def test_alternatives_behind_a_wrapper_are_chosen_from(short_toy: Problem):
    found = compare(short_toy, ["matched:fixed:0.05|2"], [0], selection_seeds=1)
    best = found.names["matched:fixed:0.05|2"]
    assert best in ("matched:fixed:0.05", "matched:fixed:2")
    assert found.results[0].note == f"{best.rpartition(':')[2]} chosen on validation from 0.05|2"


def test_the_verdict_names_the_best_rival_and_counts_what_is_above_zero():
    def result(rule: str, percent: float) -> MethodResult:
        values = np.full(8, percent / 100)
        return MethodResult(rule, values, values)

    policy, percents = "dtkd:2", {"detached": 91.0, "greedy": 91.0, "shuffled": 89.5, "averaged": 89.5}
    results = [result(policy, 90.0), result("fixed:4", 89.0)]
    results += [result(f"{name}:{policy}", percents.get(name, 90.0)) for name in MEANINGS]
    names = {one.rule: one.rule for one in results} | dict.fromkeys(CLOSED_FORM, "fixed:4")
    lines = verdict(Comparison(results, names), [policy], ["closed-form", "controls"], 32)
    assert lines[0] == "dtkd:2 has 90.00 %."
    assert lines[1] == "  minus fixed:4, the best closed-form method: +1.00 [+1.00, +1.00], better."
    assert "-1.00 [-1.00, -1.00], worse." in lines[2]
    assert "+0.00 [+0.00, +0.00], not told apart." in lines[5]
    assert lines[12] == "  Its advantage has an interval above zero over: shuffled, averaged."
    # Against the policy without gradient through temperatures, as all controls but that one are.
    assert lines[13].startswith("detached:dtkd:2 has 91.00 %.")
    above = ", ".join(name for name in MEANINGS if name not in ("detached", "greedy"))
    assert lines[-2] == f"  Its advantage has an interval above zero over: {above}."
    methods, values = len(CLOSED_FORM), 4 * len(CLOSED_FORM)  # none has none, and fixed eight
    told = (
        f"Tuned for the closed-form methods: {methods - 1} constants of {methods} methods, from {values} values in all"
    )
    assert lines[-1].startswith(told)
    assert len(lines) == 2 + 11 + 1 + 10 + 1


def test_the_verdict_on_tokens_goes_by_the_smaller_loss():
    def result(rule: str, loss: float) -> MethodResult:
        values = np.full(8, loss)
        return MethodResult(rule, values / 9, values / 9, measures={"negative_log_likelihood": values})

    policy = "dtkd:2"
    results = [result(policy, 2.0), result("fixed:4", 2.5), result("none", 2.25)]
    results += [result(f"{name}:{policy}", 2.125 if name == "shuffled" else 2.0) for name in MEANINGS]
    names = {one.rule: one.rule for one in results} | dict.fromkeys(CLOSED_FORM, "fixed:4") | {"none": "none"}
    lines = verdict(Comparison(results, names, quantity=LOSS), [policy], ["closed-form", "controls"], 32)
    assert lines[0] == "dtkd:2 has 2.0000 nats a token."
    assert lines[1] == "  minus none, the best closed-form method: -0.2500 [-0.2500, -0.2500], better."
    assert lines[12] == "  Its advantage has an interval below zero over: shuffled."


def test_a_study_writes_its_files_its_verdict_and_is_not_done_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rltemp.experiments.study.CLOSED_FORM", ("none", "fixed:1|4", "atkd:kd_weight=2|9"))
    out = tmp_path / "s"
    command = ("study", "--task", "toy", "--epochs", 1, "--rules", "dtkd:2", "--seeds", 4, "--selection-seeds", 2)
    assert code(*command, "--out", out) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert {row["seed"] for row in rows} == {"1000", "1001", "1002", "1003"}
    rules = {row["rule"] for row in rows}
    assert {"dtkd:2", "matched:dtkd:2", "matched:atkd"} <= rules
    assert {f"{prefix}{name}:dtkd:2" for name in MEANINGS for prefix in ("", "matched:")} <= rules
    result = json.loads((out / "result.json").read_text())
    assert all(line in said for line in result["verdict"])
    report = (out / "report.md").read_text()
    assert f"**{result['verdict'][0]}**" in report
    assert "4 seeds are too few to tell methods apart" in result["verdict"][1]
    assert "\n  - minus shuffled (its temperatures on other samples of the batch): " in report
    assert "from 4 values in all" in result["verdict"][-2]
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert code(*command, "--out", out) == 0
    assert "finished before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no policy": ([], "needs --rules"),
    "alternatives": (["--rules", "dtkd:1|2"], "lists alternatives"),
    "wrong name": (["--rules", "dtdk"], "did you mean 'dtkd'"),
    "no temperatures": (["--rules", "ctkd"], "learns its own in every run anew"),
    "wrong group": (["--rules", "dtkd", "--only", "closedform"], "--only"),
    "baseline": (["--rules", "dtkd", "--against", "dtkd:3"], "baseline"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options, message = MISTAKES[words]
    assert code("study", "--task", "toy", *options, "--out", tmp_path / "s") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_what_cannot_be_studied_is_refused_by_its_plan():
    with pytest.raises(BadInputError, match="unknown rule"):
        check_rules(plan(["dtdk"], ["matched"]), [0])
