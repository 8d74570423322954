"""Potentials worked by hand; credits against finite differences, and up the toy to its known optimum."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.data.toy import toy_best_ratio
from rltemp.envs.assignments import training_pool
from rltemp.envs.episode import Decision, Episode
from rltemp.envs.rewards import MARGIN_SLOPE, POTENTIALS, WORST, influence, log_likelihood, log_odds, margin
from rltemp.kd.losses import cross_entropy
from rltemp.kd.signals import Signals
from rltemp.policy.features import FEATURES
from rltemp.training.distill import Distillation

PROBE = torch.arange(100, 140)


def test_margin_worked_by_hand() -> None:
    # Logits (1, 0, -1): mean 0, deviation sqrt(2/3); the first leads the second by 1.
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]])
    ahead = 1 / (1 + math.exp(-MARGIN_SLOPE / math.sqrt(2 / 3)))
    behind = 1 / (1 + math.exp(MARGIN_SLOPE / math.sqrt(2 / 3)))
    assert float(margin(logits[:1], torch.tensor([0]))) == pytest.approx(ahead)
    assert float(margin(logits[:1], torch.tensor([1]))) == pytest.approx(behind, rel=1e-4)
    assert float(margin(logits, torch.tensor([0, 1]))) == pytest.approx((ahead + behind) / 2)


def test_log_likelihood_worked_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert float(log_likelihood(logits, torch.tensor([1, 0]))) == pytest.approx((math.log(0.75) + math.log(0.5)) / 2)


def test_margin_sees_neither_the_scale_nor_the_shift_of_a_samples_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=generator)
    labels = torch.randint(0, 5, (20,), generator=generator)
    moved = logits * torch.logspace(-2, 2, 20)[:, None] + torch.linspace(-3, 3, 20)[:, None]
    torch.testing.assert_close(margin(moved, labels), margin(logits, labels), rtol=0, atol=1e-5)
    assert abs(log_likelihood(moved, labels) - log_likelihood(logits, labels)) > 0.1


@pytest.mark.parametrize("name", sorted(POTENTIALS))
def test_a_potential_gives_every_student_of_a_stack_its_own_number(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 4, generator=generator)
    labels = torch.randint(0, 4, (7,), generator=generator)
    together = POTENTIALS[name](logits, labels)
    assert together.shape == (3,)
    for student in range(3):
        torch.testing.assert_close(together[student], POTENTIALS[name](logits[student], labels))
    assert bool((together > WORST[name]).all())


@pytest.mark.parametrize("name", sorted(POTENTIALS))
def test_logits_without_a_margin_give_a_finite_potential(name: str) -> None:
    assert bool(POTENTIALS[name](torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)).isfinite())


@pytest.fixture
def tiny(toy: Problem) -> Problem:
    """The toy in float64, three steps of four samples, with momentum and weight decay."""
    recipe = replace(toy.task.recipe, batch_size=4, epochs=1, momentum=0.8, weight_decay=0.05, learning_rate=0.3)
    return replace(toy, task=replace(toy.task, recipe=recipe))


def in_float64(run: Distillation, steps: int) -> Distillation:
    run.student.double()
    run.steps = steps
    return run


class Smooth:
    """A run of float64 end to end: `Method.loss` works in float32, where differences of 1e-6 drown."""

    def __init__(self, problem: Problem, steps: int = 3) -> None:
        self.problem, self.steps = problem, steps

    def loss(self, signals: Signals, action: Tensor) -> Tensor:
        student_temperature, teacher_temperature = (2.0 * torch.exp(action)).unbind(-1)
        student = (signals.student_logits / student_temperature[:, None]).log_softmax(-1)
        teacher = (signals.teacher_logits.double() / teacher_temperature[:, None]).log_softmax(-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1)
        own = -signals.student_logits.log_softmax(-1).gather(-1, self._labels(signals)[:, None]).squeeze(-1)
        return 0.1 * own + 0.9 * student_temperature * teacher_temperature * divergence

    def _labels(self, signals: Signals) -> Tensor:
        assert signals.labels is not None
        return signals.labels

    def play(self, actions: Tensor) -> tuple[Distillation, list[list[Tensor]], Tensor]:
        run = in_float64(Distillation(self.problem, 0), self.steps)
        tape = []
        for action in actions:
            signals = run.observe()
            tape.append([value.detach().clone() for value in run.student.parameters()])
            run.update(self.loss(signals, action))
        data = self.problem.dataset
        logits = run.student(data.batch(data.probe, PROBE).double())
        return run, tape, log_likelihood(logits, data.probe.labels[PROBE])


@pytest.fixture
def smooth(tiny: Problem, monkeypatch: pytest.MonkeyPatch) -> Smooth:
    single = Distillation._images
    monkeypatch.setattr(Distillation, "_images", lambda self, step, index: single(self, step, index).double())
    return Smooth(tiny)


@pytest.mark.parametrize("student", ["linear", "mlp:3"])
def test_influence_is_the_derivative_of_the_end_by_every_action(smooth: Smooth, student: str) -> None:
    smooth.problem = replace(smooth.problem, task=replace(smooth.problem.task, student=student))
    actions = 0.3 * torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run, tape, outcome = smooth.play(actions)
    credits = influence(run, tape, actions, smooth.loss, outcome)
    assert credits.dtype == torch.float64
    assert bool((credits.abs() > 1e-6).all())
    for index in product(range(3), range(4), range(2)):
        ends = []
        for change in (1e-5, -1e-5):
            moved = actions.clone()
            moved[index] += change
            ends.append(smooth.play(moved)[2].item())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(credits[index]), rel=1e-5, abs=1e-9)


def test_influence_is_zero_where_a_loss_ignores_its_actions(toy: Problem) -> None:
    run = Distillation(toy, 0)
    tape = []
    run.steps = 3
    while not run.done:
        tape.append([value.detach().clone() for value in run.student.parameters()])
        run.update(cross_entropy(run.observe()))
    data = toy.dataset
    outcome = log_likelihood(run.student(data.batch(data.probe, PROBE)), data.probe.labels[PROBE])
    actions = torch.zeros(3, 50, 2)
    credits = influence(run, tape, actions, lambda signals, action: cross_entropy(signals), outcome)
    assert torch.equal(credits, torch.zeros(3, 50, 2))


def episode(problem: Problem, seeds: int | list[int] = 0) -> Episode:
    run = Distillation(problem, seeds)
    probe = torch.arange(len(run.split))
    probe = probe if isinstance(seeds, int) else probe.expand(len(seeds), -1)
    return Episode(run, Decision.make("fixed:2"), probe, keep_tape=True)


def test_an_episodes_influence_agrees_with_training_again(toy: Problem) -> None:
    problem = shortened(toy, epochs=1)
    actions = torch.zeros(20, 50, 2)

    def end(actions: Tensor) -> Episode:
        made = episode(problem)
        for action in actions:
            made.step(action)
        return made

    credits = end(actions).influence()
    direction = credits / credits.norm()
    # One number along the gradient of all 2,000 actions: float32 resolves it, and the step is small.
    gained = float(end(0.05 * direction).potential - end(-0.05 * direction).potential) / 0.1
    assert gained == pytest.approx(float(credits.norm()), rel=0.02)


def test_a_stacks_influence_is_that_of_each_student_alone(toy: Problem) -> None:
    problem = shortened(toy, epochs=1)
    together, alone = episode(problem, [3, 4]), [episode(problem, seed) for seed in (3, 4)]
    generator = torch.Generator().manual_seed(0)
    while not together.run.done:
        action = 0.5 * torch.randn(2, 50, 2, generator=generator)
        together.step(action)
        for one, own in zip(alone, action, strict=True):
            one.step(own)
    expected = torch.stack([one.influence() for one in alone], 1)
    torch.testing.assert_close(together.influence(), expected, rtol=1e-3, atol=1e-8)


def test_credits_of_a_restarted_student_are_zero(toy: Problem) -> None:
    made = episode(shortened(toy, epochs=1), [3, 4])
    while not made.run.done:
        made.step(torch.zeros(2, 50, 2))
        if made.run.step == 7:
            with torch.no_grad():
                next(made.run.student.parameters())[1] = math.nan
        if bool(made.diverged.any()):
            made.recover()
    credits = made.influence()
    assert torch.equal(credits[:, 1], torch.zeros(20, 50, 2))
    assert bool((credits[:, 0].abs().sum((1, 2)) > 0).all())


def test_influence_needs_a_tape_and_an_end(toy: Problem) -> None:
    made = episode(toy)
    with pytest.raises(RuntimeError, match="at its end"):
        made.influence()


def test_climbing_the_influence_leads_to_the_toys_best_ratio(toy: Problem) -> None:
    """Three students, each on samples whose teacher is too sharp by 1, 2 or 4; one teacher temperature each.

    (One linear student for all of them would fit the mean of their teachers, whichever of them is too sharp.)
    """
    problem = shortened(toy, epochs=8)
    part, logits = training_pool(problem)
    best = toy_best_ratio(part.images)
    size, ratios = len(problem.dataset.train), torch.tensor([1.0, 2.0, 4.0])
    train, probe = (
        torch.stack([(best[span] == ratio).nonzero()[:most, 0] for ratio in ratios]) + start
        for span, most, start in ((slice(size), 300, 0), (slice(size, None), 160, size))
    )
    decision = Decision.make("fixed:2")
    action = torch.zeros(3)  # of the teacher; the student keeps its temperature

    def error() -> Tensor:
        return (decision.scale.ratio**action / ratios).log().abs()

    start, stride = error(), 0.1
    for _ in range(25):
        run = Distillation(problem, [0, 0, 0], train=part, subset=train, teacher_logits=logits)
        made = Episode(run, decision, probe, reward_interval=10_000, keep_tape=True)
        actions = torch.stack([torch.zeros(3), action], -1)[:, None].expand(3, 50, 2).contiguous()
        while not run.done:
            made.step(actions)
        action, stride = action + stride * made.influence()[..., 1].sum((0, 2)).sign(), stride * 0.93
    assert float(error().mean()) < 0.6 * float(start.mean())
    assert bool(action[0] < action[1] < action[2])


def shortened(problem: Problem, epochs: int) -> Problem:
    return replace(problem, task=replace(problem.task, recipe=replace(problem.task.recipe, epochs=epochs)))


def test_every_potential_has_its_worst_and_every_default_feature_exists() -> None:
    assert set(POTENTIALS) == set(WORST)
    assert set(Decision.make("fixed:4").features) <= set(FEATURES)


def test_log_odds_are_those_of_the_smooth_accuracy_and_bounded() -> None:
    # standardised logits (1, -1) have a margin of 2: sigmoid(40) is 1, sigmoid(-40) is 0, and their mean 1/2
    logits, labels = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])
    assert log_odds(logits, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert log_odds(logits[:1], labels[:1]).item() == pytest.approx(math.log(999), rel=1e-3)
    assert log_odds(logits[1:], labels[1:]).item() == pytest.approx(WORST["log_odds"], rel=2e-3)


def test_log_odds_pay_more_for_a_point_near_the_top() -> None:
    def value(right: int) -> float:
        logits = torch.tensor([[3.0, 1.0]]).expand(100, 2)
        return float(log_odds(logits, (torch.arange(100) >= right).long()))

    assert value(98) - value(97) > 5 * (value(51) - value(50))
