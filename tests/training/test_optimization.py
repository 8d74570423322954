"""What changes the weights: beside plain torch loops, alone and stacked, stopped and resumed, and passed over."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.device_reads import DeviceReads
from torch import Tensor, nn
from torch.optim import Optimizer, swa_utils

from rltemp import BadInputError, Signals, load_method
from rltemp.data.problem import Problem, evaluate
from rltemp.data.recipe import Recipe
from rltemp.envs.episode import Decision, Episode
from rltemp.envs.rewards import POTENTIALS
from rltemp.experiments.measures import Selection
from rltemp.kd.losses import cross_entropy
from rltemp.kd.method import NoTeacher
from rltemp.training.distill import Distillation
from rltemp.training.guards import RunGuard
from rltemp.training.optimization import Optimization
from rltemp.training.steps import plain_step, train

BASE = Recipe(epochs=1, batch_size=50, learning_rate=0.05)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
RECIPES = {
    "sgd": replace(BASE, momentum=0.9, weight_decay=0.01),
    "adamw": replace(BASE, optimizer=ADAMW, warmup=0.2, schedule="linear"),
    "clipped": replace(BASE, clip=0.3),
    "accumulated": replace(BASE, accumulate=3),
    "averaged": replace(BASE, ema=0.8),
    "smoothed": replace(BASE, label_smoothing=0.2),
    "all": replace(BASE, optimizer=ADAMW, warmup=0.2, clip=0.3, accumulate=3, ema=0.8, label_smoothing=0.2),
}
NONE = load_method("none")


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.parameters()]


def assert_close(one: Sequence[Tensor], other: Sequence[Tensor], within: float = 1e-5) -> None:
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=within, atol=within)


def assert_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def plain_loop(run: Distillation, recipe: Recipe) -> tuple[list[list[Tensor]], nn.Module]:
    """The weights after every batch of a loop that has nothing of rltemp's but the batches, and their running mean."""
    student, dataset = copy.deepcopy(run.student), run.problem.dataset
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay or 0.0}
    adamw = recipe.optimizer is torch.optim.AdamW
    optimizer: Optimizer = (
        torch.optim.AdamW(student.parameters(), **options)
        if adamw
        else torch.optim.SGD(student.parameters(), momentum=0.9, **options)
    )
    mean = swa_utils.AveragedModel(student, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(recipe.ema))
    seen, size = [], recipe.accumulate
    for first in range(0, run.steps, size):
        batches = range(first, min(first + size, run.steps))
        for batch in batches:
            index = run.batches.positions(batch)
            logits = student(dataset.batch(dataset.train, index).inputs)
            loss = F.cross_entropy(logits, dataset.train.labels[index], label_smoothing=recipe.label_smoothing)
            (loss / len(batches)).backward()
            seen.append(weights(student))
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(student.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(first, run.steps)
        optimizer.step()
        optimizer.zero_grad()
        mean.update_parameters(student)
        seen[-1] = weights(student)
    return seen, mean.module


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_is_that_of_a_plain_torch_loop(digits: Problem, name: str) -> None:
    recipe = RECIPES[name]
    run = Distillation(digits, 0, recipe=recipe)
    assert run.steps % 3 == 2  # the last optimizer step is of what is left
    expected, mean = plain_loop(run, recipe)
    method, before = run.attach(NONE), weights(run.student)
    for after in expected:
        run.update(method.loss(run.observe()))
        assert_close(weights(run.student), after, 1e-6)
    assert not torch.allclose(before[0], expected[-1][0], atol=1e-3)
    assert_close(weights(run.evaluated), weights(mean) if recipe.ema else expected[-1], 1e-6)
    assert (run.evaluated is run.student) == (not recipe.ema)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "sgd"])
def test_no_option_is_ignored(digits: Problem, name: str) -> None:
    plain, other = (train(Distillation(digits, 0, recipe=one), NONE) for one in (BASE, RECIPES[name]))
    assert not torch.allclose(weights(plain)[0], weights(other)[0], atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stacked_student_is_the_same_student_alone(digits: Problem, name: str) -> None:
    seeds, method = [3, 4, 6], load_method("fixed:4")
    stack = train(Distillation(digits, seeds, recipe=RECIPES[name]), method)
    for position, seed in enumerate(seeds):
        alone = train(Distillation(digits, seed, recipe=RECIPES[name]), method)
        for key, value in stack.unstack(position).items():
            torch.testing.assert_close(value, alone.state_dict()[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seeds", [0, [0, 1]])
@pytest.mark.parametrize("stopped", [4, 7])
def test_a_run_stopped_within_an_accumulation_goes_on_to_the_same_bits(digits, seeds, stopped):
    method = load_method("dtkd")
    whole, first, second = (Distillation(digits, seeds, recipe=RECIPES["all"]) for _ in range(3))
    train(whole, method)
    attached = first.attach(method)
    for _ in range(stopped):
        plain_step(first, attached)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    train(second, method)
    assert second.optimization.averaged is not None
    assert_same(weights(second.student), weights(whole.student))
    assert_same(weights(second.evaluated), weights(whole.evaluated))


def test_the_same_seed_is_the_same_run(digits: Problem) -> None:
    one, other = (train(Distillation(digits, 0, recipe=RECIPES["all"]), NONE) for _ in range(2))
    assert_same(weights(one), weights(other))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_batch_that_is_passed_over_leaves_no_trace(digits: Problem, precision: Any) -> None:
    run, guard = Distillation(digits, 0, recipe=replace(RECIPES["all"], precision=precision)), RunGuard()
    method = run.attach(NONE)

    def faulty(signals: Signals) -> Tensor:
        return method.loss(signals) * (float("nan") if run.step == 4 else 1.0)

    broken = replace_loss(faulty)
    for _ in range(4):
        guard.step(run, broken)
    before, sums = weights(run.student), {place: value.clone() for place, value in run.optimization._sums.items()}
    assert sums
    guard.step(run, broken)
    assert not run.healthy
    assert_same(list(run.optimization._sums.values()), list(sums.values()))
    for _ in range(2):  # two more make the three that an optimizer step takes
        assert_same(weights(run.student), before)
        guard.step(run, broken)
    assert not torch.equal(weights(run.student)[0], before[0])
    assert guard.counts.skipped_steps == 1


def replace_loss(loss: Any) -> NoTeacher:
    class Faulty(NoTeacher):
        def loss(self, signals: Signals) -> Tensor:
            return loss(signals)

    return Faulty()


def test_float16_clips_and_accumulates_gradients_that_are_not_scaled(digits: Problem) -> None:
    recipe = replace(RECIPES["clipped"], accumulate=2)
    half, whole = (
        train(Distillation(digits, 0, recipe=replace(recipe, precision=precision)), NONE)
        for precision in ("float16", "float32")
    )
    assert_close(weights(half), weights(whole), 0.01)


def test_a_step_with_all_options_reads_one_number(digits: Problem) -> None:
    # Of AdamW torch keeps and reads the numbers of steps on the CPU, which here is the device.
    run, guard = Distillation(digits, 0, recipe=replace(RECIPES["all"], optimizer="sgd")), RunGuard()
    for _ in range(5):
        guard.step(run, NONE)
    with DeviceReads() as reads:
        guard.step(run, NONE)
    assert run.optimization._count == 0  # it was one that changed weights
    assert len(reads.places) == 1


# Restarts


@pytest.mark.parametrize("optimizer", ["adamw", "rprop"])
def test_a_restart_forgets_all_that_is_kept_for_the_marked_students(digits: Problem, optimizer: str) -> None:
    recipe = replace(BASE, optimizer=optimizer, ema=0.8, accumulate=3)
    run, fresh = (Distillation(digits, [3, 4, 5], recipe=recipe) for _ in range(2))
    run.restart(torch.tensor([True, False, True]))  # before the first step nothing is kept
    for _ in range(5):
        plain_step(run, NONE)
    fresh.optimization.begin(0)
    state = run.optimization.optimizers[0].state
    kept = {
        (value, name): entry.clone()
        for value in run.student.parameters()
        for name, entry in state[value].items()
        if entry.shape == value.shape
    }
    mean = weights(run.evaluated)
    run.restart(torch.tensor([False, True, False]))
    blank = {"exp_avg": 0.0, "exp_avg_sq": 0.0, "prev": 0.0, "step_size": 0.05}
    assert kept
    for (value, name), before in kept.items():
        assert (state[value][name][1] == blank[name]).all(), name
        for untouched in (0, 2):
            assert torch.equal(state[value][name][untouched], before[untouched])
    for total in run.optimization._sums.values():
        assert (total[1] == 0).all()
        assert (total[0] != 0).any()
    for value, initial, before in zip(weights(run.evaluated), weights(fresh.student), mean, strict=True):
        assert torch.equal(value[1], initial[1])
        assert torch.equal(value[0], before[0])


# Several students that are no stack


class Several(nn.Module):
    """Students in a list, with rows of the input each."""

    def __init__(self, students: Sequence[nn.Module]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([student(rows) for student, rows in zip(self.students, images, strict=True)])


def three_networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(3)]


def take(module: nn.Module, optimization: Optimization, images: Tensor, labels: Tensor, steps: int) -> None:
    for batch in range(steps):
        optimization.begin(batch)
        F.cross_entropy(module(images).flatten(0, -2), labels.flatten(), reduction="sum").backward()
        optimization.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor"])
def test_students_in_a_list_are_each_trained_as_alone(optimizer: str) -> None:
    recipe = Recipe(1, 1, 0.05, optimizer=optimizer, clip=0.5, accumulate=2, ema=0.5)
    images, labels = torch.randn(3, 6, 4), torch.arange(18).view(3, 6) % 3
    together, alone = Several(three_networks()), three_networks()
    each = [list(student.parameters()) for student in together.students]
    optimization = Optimization(recipe, together, 6, each=each)
    assert len(optimization.optimizers) == (3 if optimizer == "adafactor" else 1)
    take(together, optimization, images, labels, 6)
    for place, student in enumerate(alone):
        own = Optimization(recipe, student, 6)
        take(student, own, images[place], labels[place], 6)
        assert_close(weights(together.students[place]), weights(student), 1e-6)
        assert_close(weights(optimization.averaged.students[place]), weights(own.averaged), 1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_restarted_student_of_a_list_begins_like_a_fresh_one(optimizer: str) -> None:
    recipe = Recipe(1, 1, 0.05, schedule="constant", optimizer=optimizer, ema=0.5)
    images, labels = torch.randn(3, 6, 4), torch.arange(18).view(3, 6) % 3
    together, fresh = Several(three_networks()), three_networks()[1]
    each = [list(student.parameters()) for student in together.students]
    optimization = Optimization(recipe, together, 100, each=each)
    take(together, optimization, images, labels, 4)
    together.students[1].load_state_dict(fresh.state_dict())
    optimization.restart(torch.tensor([False, True, False]))
    assert_same(weights(optimization.averaged.students[1]), weights(fresh))
    take(together, optimization, images, labels, 3)
    take(fresh, Optimization(recipe, fresh, 100), images[1], labels[1], 3)
    assert_close(weights(together.students[1]), weights(fresh), 1e-6)


# What is refused


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_an_optimizer_that_looks_at_whole_tensors_is_refused_for_a_stack(digits: Problem, optimizer: str) -> None:
    recipe = replace(BASE, optimizer=optimizer)
    with pytest.raises(BadInputError, match=f"optimizer {optimizer} cannot train students side by side") as caught:
        Distillation(digits, [0, 1], recipe=recipe)
    assert "\n" not in str(caught.value)
    if optimizer == "adafactor":
        train(Distillation(digits, 0, recipe=recipe), NONE)


def test_an_optimizer_that_cannot_train_a_rules_parameters_is_refused() -> None:
    network = nn.Linear(3, 2, bias=False)
    optimization = Optimization(Recipe(1, 1, 0.1, optimizer="muon"), network, 1)
    with pytest.raises(BadInputError, match="optimizer muon cannot be made: Muon only supports 2D"):
        optimization.add([nn.Parameter(torch.zeros(()))])


# Label smoothing


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_a_smoothed_cross_entropy_is_torchs(share: float, masked: bool) -> None:
    logits, labels = torch.randn(4, 7, 5, requires_grad=True), torch.randint(0, 5, (4, 7))
    mask = torch.rand(4, 7) < 0.5 if masked else None
    found = cross_entropy(Signals(logits, torch.zeros(4, 7, 5), labels, mask=mask), share)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=share, reduction="none")
    expected = expected.view(4, 7) if mask is None else expected.view(4, 7).masked_fill(~mask, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", ["none", "fixed:4", "dtkd", "ctkd", "universal"])
def test_a_run_smooths_the_labels_of_every_kind_of_method(digits: Problem, spec: str) -> None:
    method = load_method(spec)
    run = Distillation(digits, 0, recipe=replace(BASE, label_smoothing=0.3))
    attached = run.attach(method)
    assert (method.label_smoothing, attached.label_smoothing) == (0.0, 0.3)
    signals = run.observe()
    difference = attached.loss(signals) - replace(attached, label_smoothing=0.0).loss(signals)
    own = method.ce_weight * (cross_entropy(signals, 0.3) - cross_entropy(signals))
    torch.testing.assert_close(difference, own, rtol=1e-4, atol=1e-5)


# What is measured


def test_rewards_and_results_are_those_of_the_running_mean(digits: Problem) -> None:
    recipe = replace(BASE, ema=0.95)
    run = Distillation(replace(digits, task=replace(digits.task, recipe=recipe)), [0, 1])
    probe = torch.arange(100).expand(2, -1)
    episode, selection = Episode(run, Decision.make("fixed:4"), probe, reward_interval=1), Selection(run)
    while not run.done:
        episode.step(torch.zeros(2, 50, 2))
        selection.evaluate()
    dataset = digits.dataset
    images = dataset.batch(dataset.train, probe).inputs
    mean, last = (
        POTENTIALS[digits.task.metric](network.eval()(images), dataset.train.labels[probe])
        for network in (run.evaluated, run.student)
    )
    assert_close([episode.potential], [mean])
    assert not torch.allclose(mean, last, atol=0.01)
    expected = evaluate(run.evaluated, digits, dataset.test)
    assert_close([selection.measure()["selected_accuracy"].float()], [expected])
    assert not torch.equal(expected, evaluate(run.student, digits, dataset.test))
