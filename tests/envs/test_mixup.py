"""Mix-up: who is mixed with whom, into whose place, with which label and teacher; and that it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rltemp import BadInputError, load_method
from rltemp.data.problem import Problem
from rltemp.envs.episode import Decision, Episode
from rltemp.envs.mixup import MixedDistillation, MixedMethod, MixedSignals, pairs, share_of_run
from rltemp.envs.vector import DistillVecEnv
from rltemp.rules import fixed
from rltemp.training.distill import Distillation

STEPS, BATCH = 20, 50
SHARE = 0.7


def by_entropy(descending: list[int]) -> Tensor:
    """Logits `[20, 3]` whose entropies fall in the order of the given samples."""
    logits = torch.zeros(20, 3)
    logits[torch.tensor(descending), 0] = torch.linspace(0.1, 4.0, 20)
    return logits


def mixed_run(problem: Problem, seeds: int | list[int] = 3) -> tuple[MixedSignals, Distillation]:
    """The first batch of a run that mixes, and the same run without."""
    return MixedDistillation(problem, seeds, share=SHARE).observe(), Distillation(problem, seeds)


def test_the_ninth_tenth_by_entropy_gives_way_to_the_second() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    places, partners = pairs(by_entropy(order))
    assert partners.tolist() == order[2:4]  # 10 to 20 % have a higher entropy
    assert places.tolist() == order[16:18]  # 80 to 90 %


def test_a_batch_without_tenths_is_refused() -> None:
    with pytest.raises(BadInputError, match="at least 10 samples, got 9"):
        pairs(torch.zeros(9, 3))


@pytest.mark.parametrize("seeds", [3, [3, 4]], ids=["one student", "a stack"])
def test_images_teacher_and_labels_are_mixed_in_the_same_proportions(short: Problem, seeds: int | list[int]) -> None:
    signals, run = mixed_run(short, seeds)
    plain, index = run.observe(), run.batches.positions(0)
    places, partners = pairs(plain.student_logits)
    images = short.dataset.batch(run.split, index).inputs
    low, high = (torch.take_along_dim(images, at[..., None, None, None], -4) for at in (places, partners))
    mixture = SHARE * high + (1 - SHARE) * low

    teacher = short.teacher(mixture.flatten(0, -4)).view(*places.shape, -1)
    at = places[..., None].expand_as(teacher)
    torch.testing.assert_close(signals.teacher_logits.gather(-2, at), teacher)
    with torch.no_grad():
        student = run.student(mixture)
    torch.testing.assert_close(signals.student_logits.gather(-2, at).detach(), student, rtol=1e-4, atol=1e-5)

    assert torch.equal(signals.labels.gather(-1, places), plain.labels.gather(-1, partners))
    assert torch.equal(signals.second_labels, plain.labels)
    assert signals.share.gather(-1, places).flatten().tolist() == [pytest.approx(SHARE)] * places.numel()
    assert int((signals.share == 1).sum()) == plain.labels.numel() - places.numel()


def test_samples_that_are_not_mixed_stay_as_they_are(short: Problem) -> None:
    signals, run = mixed_run(short)
    plain = run.observe()
    whole = signals.share == 1
    assert int(whole.sum()) == BATCH - 5
    for name in ("student_logits", "teacher_logits", "labels"):
        torch.testing.assert_close(getattr(signals, name)[whole], getattr(plain, name)[whole])
    assert not torch.equal(signals.teacher_logits, plain.teacher_logits)


def test_the_cross_entropy_of_a_mixture_is_that_of_both_labels() -> None:
    # log-probabilities (log 0.5, log 0.3, log 0.2); 0.7 of label 1 and 0.3 of label 2
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    signals = MixedSignals(
        logits, logits, torch.tensor([1]), 0.5, second_labels=torch.tensor([2]), share=torch.tensor([0.7])
    )
    expected = -0.7 * math.log(0.3) - 0.3 * math.log(0.2)
    method = MixedMethod("labels", fixed(4.0), ce_weight=1.0, kd_weight=0.0)
    assert method.loss(signals).item() == pytest.approx(expected)


def test_the_step_minimises_the_mixed_objective(short: Problem) -> None:
    """The student's update is the gradient of r CE(high) + (1 - r) CE(low) beside the divergence."""
    run = MixedDistillation(short, 3, share=SHARE)
    method = load_method("fixed:5")
    episode = Episode(run, Decision.make(method), torch.arange(10))
    signals, share = episode.signals, episode.signals.share
    own, second = (method.loss(s) for s in (signals, replace(signals, labels=signals.second_labels)))
    wanted = share * own + (1 - share) * second
    assert (own - second).abs().max() > 0.01  # it would matter to keep one label
    gradients = torch.autograd.grad(wanted.mean(), list(run.student.parameters()), retain_graph=True)
    before = [value.detach().clone() for value in run.student.parameters()]
    episode.step(torch.zeros(BATCH, 2))
    torch.testing.assert_close(episode.loss, wanted.detach())
    for old, gradient, new in zip(before, gradients, run.student.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - run.recipe.rate(0, run.steps) * gradient)


def test_a_loss_of_plain_signals_is_left_alone(short: Problem) -> None:
    signals, method = Distillation(short, 3).observe(), load_method("fixed:5")
    mixed = MixedDistillation(short, 3, share=SHARE).attach(method)
    assert isinstance(mixed, MixedMethod)
    assert torch.equal(mixed.loss(signals), method.loss(signals))


def test_the_share_falls_from_one_to_seven_tenths_and_then_there_is_none() -> None:
    assert [share_of_run(run, 4) for run in range(4)] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert share_of_run(4, 4) is None
    assert share_of_run(0, 1) == 1.0
    assert share_of_run(0, 0) is None


def test_the_environment_mixes_in_its_first_runs_only(short: Problem) -> None:
    env = DistillVecEnv(short, students=2, mixup_runs=2)
    env.reset()
    shares: list[float | None] = []
    for _ in range(3):
        signals = env.episode.signals
        shares.append(float(signals.share.min()) if isinstance(signals, MixedSignals) else None)
        for _ in range(STEPS):
            env.step(np.zeros((env.num_envs, 2), np.float32))
    assert shares == [1.0, pytest.approx(0.7), None]
    assert type(env.episode.run) is Distillation


def test_after_its_phase_the_environment_is_the_one_without_mixup(short: Problem) -> None:
    mixing, plain = (DistillVecEnv(short, students=2, mixup_runs=runs, seed=5) for runs in (1, 0))
    actions = np.zeros((mixing.num_envs, 2), np.float32)
    pairs_of_runs = []
    for env in (mixing, plain):
        env.reset()
        pairs_of_runs.append([env.step(actions)[0] for _ in range(STEPS + 3)])
    first, second = pairs_of_runs
    assert not np.array_equal(first[0], second[0])
    for mine, theirs in zip(first[STEPS - 1 :], second[STEPS - 1 :], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ranking_the_batch_leaves_no_trace_in_a_batch_norm(make_problem: Callable[..., Problem]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    labels = torch.arange(24) % 3
    problem = make_problem(images, labels, student="resnet8", batch_size=12, teacher_logits=torch.zeros(24, 3))
    problem = replace(problem, teacher=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    run = MixedDistillation(problem, 0, share=SHARE)
    run.observe()
    counts = {int(v) for name, v in run.student.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {1}
