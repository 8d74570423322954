"""The step and its loop: by hand, alone and stacked, and nothing computed twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rltemp import BadInputError, Signals, load_method
from rltemp.data.batches import epoch_order
from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, evaluate, outputs, predict
from rltemp.data.recipe import Recipe
from rltemp.kd.losses import cross_entropy
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.steps import train

ProblemMaker = Callable[..., Problem]
SHORT = Recipe(epochs=2, batch_size=50, learning_rate=0.05)


class Watch:
    """Records what goes into a module, call by call."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        self.handle = module.register_forward_hook(lambda _, inputs, __: self.inputs.append(inputs[0].detach()))

    def __len__(self) -> int:
        return len(self.inputs)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    """Twelve random uint8 pictures of 8 x 8 with three classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(12) % 3


class Brightness(nn.Module):
    """A teacher whose logits are the channels' means."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-2, -1))


def state_of(student: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# One step by hand


def test_an_update_is_stochastic_gradient_descent_worked_by_hand(make_problem: ProblemMaker) -> None:
    images, labels = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1), torch.tensor([0, 1])
    problem = make_problem(images, labels, momentum=0.9, weight_decay=0.1, epochs=2)
    run = Distillation(problem, seeds=0)
    with torch.no_grad():
        for parameter in run.student.parameters():
            parameter.zero_()
    weight, bias = run.student.parameters()
    run.update(cross_entropy(run.observe()))
    # At zero both classes have 1/2. Gradients: (-1/2) * 1 and (1/2) * -2, mean -3/4; the bias's cancel.
    assert weight.flatten().tolist() == pytest.approx([0.375, -0.375])
    assert bias.tolist() == pytest.approx([0.0, 0.0])
    run.update(cross_entropy(run.observe()))
    # Its margin is now 2 * 0.375 x: it is wrong by sigmoid(-0.75) and sigmoid(-1.5).
    first, second = 1 / (1 + math.exp(0.75)), 1 / (1 + math.exp(1.5))
    velocity = 0.9 * -0.75 + ((-first - 2 * second) / 2 + 0.1 * 0.375)
    assert weight.flatten().tolist() == pytest.approx([0.375 - 0.5 * velocity, -0.375 + 0.5 * velocity], abs=1e-6)
    velocity = (-first + second) / 2
    assert bias.tolist() == pytest.approx([-0.5 * velocity, 0.5 * velocity], abs=1e-6)
    assert run.done


# The run


def test_progress_runs_from_zero_to_one_and_the_rate_is_the_recipes(digits: Problem) -> None:
    run, seen, rates = Distillation(digits, 0, recipe=SHORT), [], []

    def after_step(run: Distillation, signals: Signals, _: Tensor) -> None:
        seen.append(signals.progress)
        rates.append(run.optimization.learning_rate)

    assert run.steps == 2 * (len(digits.dataset.train) // 50)
    assert (run.step, run.progress, run.done) == (0, 0.0, False)
    train(run, load_method("fixed"), after_step)
    assert (run.step, run.progress, run.done) == (run.steps, 1.0, True)
    assert seen == [step / run.steps for step in range(run.steps)]
    assert rates == [SHORT.rate(step, run.steps) for step in range(run.steps)]


def test_training_learns_the_task(digits: Problem) -> None:
    run = Distillation(digits, 0)
    before = evaluate(run.student, digits, digits.dataset.validation).item()
    student = train(run, load_method("fixed:4"))
    after = evaluate(student, digits, digits.dataset.validation).item()
    assert before < 0.4
    assert after > 0.7


def test_the_same_seed_is_the_same_run_bit_for_bit_and_another_is_not(digits: Problem) -> None:
    torch.manual_seed(1)
    first = state_of(train(Distillation(digits, 3, recipe=SHORT), load_method("dtkd")))
    torch.manual_seed(2)
    again = state_of(train(Distillation(digits, 3, recipe=SHORT), load_method("dtkd")))
    other = state_of(train(Distillation(digits, 4, recipe=SHORT), load_method("dtkd")))
    assert_same_weights(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first)


# Nothing is computed twice


@pytest.mark.parametrize("seeds", [0, [0, 1, 2]])
def test_a_step_is_one_forward_of_the_student_and_none_of_a_known_teacher(digits: Problem, seeds: Any) -> None:
    run = Distillation(digits, seeds, recipe=SHORT)
    student, teacher = Watch(run.student), Watch(digits.teacher)
    train(run, load_method("dtkd"))
    teacher.handle.remove()
    assert (len(student), len(teacher)) == (run.steps, 0)


@pytest.mark.parametrize("seeds", [0, [0, 1, 2]])
def test_where_views_change_the_teacher_sees_once_what_the_student_sees(make_problem, pictures, seeds):
    problem = make_problem(*pictures, teacher=Brightness(), augment=True, batch_size=4, learning_rate=1e-4, epochs=2)
    run = Distillation(problem, seeds)
    student, teacher = Watch(run.student), Watch(problem.teacher)
    train(run, load_method("fixed"))
    assert len(student) == len(teacher) == run.steps
    for seen, shown in zip(student.inputs, teacher.inputs, strict=True):
        assert torch.equal(seen.reshape(shown.shape), shown)
    plain = problem.dataset.normalise(problem.dataset.train.inputs)
    unchanged = [any(torch.equal(view, image) for image in plain) for view in torch.cat(teacher.inputs)]
    assert sum(unchanged) < len(unchanged) / 4


def test_cached_logits_are_those_of_the_teacher_on_the_batch(digits: Problem) -> None:
    run = Distillation(digits, 0, recipe=SHORT)
    watch = Watch(run.student)
    signals = run.observe()
    torch.testing.assert_close(signals.teacher_logits, digits.teacher(watch.inputs[0]), rtol=1e-5, atol=1e-5)
    assert not signals.teacher_logits.requires_grad
    assert signals.student_logits.requires_grad


# Stacks


@pytest.mark.parametrize("method", [*METHODS, "matched:dtkd"])
def test_a_stack_gives_each_student_the_weights_that_it_has_alone(digits: Problem, method: str) -> None:
    seeds = [3, 4, 5]
    stack = train(Distillation(digits, seeds, recipe=SHORT), load_method(method))
    for position, seed in enumerate(seeds):
        alone = train(Distillation(digits, seed, recipe=SHORT), load_method(method))
        for name, value in stack.unstack(position).items():
            # Some rules divide by what is nearly zero at first, which magnifies the order of a sum.
            torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_stack_augments_each_students_images_as_alone(make_problem, pictures):
    problem = make_problem(*pictures, teacher=Brightness(), augment=True, batch_size=4, learning_rate=1e-5, epochs=2)
    stack = Distillation(problem, [7, 8])
    seen = Watch(stack.student)
    train(stack, load_method("none"))
    for position, seed in enumerate([7, 8]):
        run = Distillation(problem, seed)
        alone = Watch(run.student)
        train(run, load_method("none"))
        for together, apart in zip(seen.inputs, alone.inputs, strict=True):
            assert torch.equal(together[position], apart)


def test_students_of_one_seed_in_a_stack_are_twins(digits: Problem) -> None:
    stack = train(Distillation(digits, [3, 3], recipe=SHORT), load_method("fixed"))
    for parameter in stack.parameters():
        # Not bit for bit: a batched matrix product may add up its entries' rows in another order.
        torch.testing.assert_close(parameter[0], parameter[1], rtol=1e-5, atol=1e-6)


def test_restart_gives_marked_students_initial_weights_and_no_momentum(digits: Problem) -> None:
    run, fresh = (Distillation(digits, [3, 4, 5], recipe=SHORT) for _ in range(2))
    run.restart(torch.tensor([True, True, True]))  # before the first step there is no momentum
    for _ in range(4):
        run.update(load_method("fixed").loss(run.observe()))
    before = [parameter.detach().clone() for parameter in run.student.parameters()]
    velocity = [
        run.optimization.optimizers[0].state[parameter]["momentum_buffer"].clone()
        for parameter in run.student.parameters()
    ]
    run.restart(torch.tensor([False, True, False]))
    rows = zip(run.student.parameters(), fresh.student.parameters(), before, velocity, strict=True)
    for parameter, initial, trained, speed in rows:
        now = run.optimization.optimizers[0].state[parameter]["momentum_buffer"]
        assert torch.equal(parameter[1], initial[1])
        assert (now[1] == 0).all()
        for untouched in (0, 2):
            assert torch.equal(parameter[untouched], trained[untouched])
            assert torch.equal(now[untouched], speed[untouched])
            assert (speed[untouched] != 0).any()


# Which samples are seen


def numbered(count: int) -> tuple[Tensor, Tensor]:
    """Samples that say their own position."""
    return torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1), torch.arange(count) % 2


def test_a_subset_is_all_that_a_student_ever_sees(make_problem: ProblemMaker) -> None:
    problem = make_problem(*numbered(20), epochs=3, learning_rate=1e-4)
    run = Distillation(problem, 0, subset=torch.tensor([19, 3, 8, 11]))
    watch = Watch(run.student)
    train(run, load_method("none"))
    assert run.steps == 6
    for epoch in range(3):
        seen = torch.cat(watch.inputs[2 * epoch : 2 * epoch + 2]).flatten().tolist()
        assert sorted(seen) == [3.0, 8.0, 11.0, 19.0]


def test_each_student_of_a_stack_has_its_own_subset_labels_and_logits(make_problem):
    images, labels = numbered(20)
    logits = torch.stack([images.flatten(), -images.flatten()], -1)
    problem = make_problem(images, labels, epochs=3, learning_rate=1e-4, teacher_logits=logits)
    subsets = torch.tensor([[19, 3, 8, 11], [0, 1, 2, 4]])
    run = Distillation(problem, [5, 6], subset=subsets)
    watch, seen = Watch(run.student), []
    train(run, load_method("none"), lambda _, signals, __: seen.append(signals))
    for student in range(2):
        positions = torch.stack(watch.inputs)[:, student].flatten().long()
        assert sorted(set(positions.tolist())) == sorted(subsets[student].tolist())
        given = torch.stack([signals.labels[student] for signals in seen]).flatten()
        assert torch.equal(given, labels[positions])
        known = torch.stack([signals.teacher_logits[student] for signals in seen]).view(-1, 2)
        assert torch.equal(known, logits[positions])


def test_other_samples_than_the_tasks_come_with_their_own_logits(make_problem: ProblemMaker) -> None:
    problem = make_problem(*numbered(6))
    other = Split(torch.full((4, 1, 1, 1), 100.0), torch.tensor([1, 1, 1, 1]))
    run = Distillation(problem, 0, train=other, teacher_logits=torch.full((4, 2), 9.0))
    watch = Watch(run.student)
    signals = run.observe()
    assert (watch.inputs[0] == 100).all()
    assert (signals.teacher_logits == 9).all()
    assert (signals.labels == 1).all()


def test_batches_are_the_epochs_order(make_problem: ProblemMaker) -> None:
    problem = make_problem(*numbered(6), epochs=2, learning_rate=1e-4)
    run = Distillation(problem, 9)
    watch = Watch(run.student)
    train(run, load_method("none"))
    order = torch.cat([epoch_order(9, epoch, 6, 2) for epoch in range(2)]).float()
    assert torch.equal(torch.stack(watch.inputs).view(6, 2), order)


def test_fewer_samples_than_a_batch_are_refused(make_problem: ProblemMaker) -> None:
    problem = make_problem(*numbered(3), batch_size=4)
    with pytest.raises(BadInputError, match="batch size 4 is above the 3 training samples"):
        Distillation(problem, 0)


# Looking without touching


def test_the_signals_of_a_step_can_be_computed_from_given_parameters(digits: Problem) -> None:
    run = Distillation(digits, [1, 2], recipe=SHORT)
    own: dict[str, Tensor] = dict(run.student.named_parameters())
    torch.testing.assert_close(run.signals_at(3, own).student_logits, run.signals_at(3).student_logits)
    zero = {name: torch.zeros_like(value) for name, value in own.items()}
    assert (run.signals_at(3, zero).student_logits == 0).all()
    assert run.step == 0
    assert torch.equal(run.signals_at(0).teacher_logits, run.observe().teacher_logits)


def test_predict_runs_in_eval_mode_in_order_and_leaves_the_weights(make_problem, pictures):
    problem = make_problem(*pictures, student="resnet8", teacher=Brightness(), augment=True, batch_size=4)
    run = Distillation(problem, 0)
    run.update(cross_entropy(run.observe()))
    before = state_of(run.student)
    whole = predict(run.student, problem, problem.dataset.test)
    parts = outputs(run.student, problem, problem.dataset.test, batch_size=5)
    assert whole.shape == (12, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert_same_weights(before, state_of(run.student))


def test_accuracy_is_the_share_of_right_answers(make_problem: ProblemMaker, pictures: tuple[Tensor, Tensor]) -> None:
    problem = make_problem(*pictures)

    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3)

    assert evaluate(First(), problem, problem.dataset.test).item() == pytest.approx(1 / 3)


def test_a_stacks_accuracies_are_each_students_own(digits: Problem) -> None:
    stack = train(Distillation(digits, [3, 4], recipe=SHORT), load_method("fixed"))
    accuracies = evaluate(stack, digits, digits.dataset.validation)
    assert accuracies.shape == (2,)
    for seed, accuracy in zip([3, 4], accuracies, strict=True):
        alone = train(Distillation(digits, seed, recipe=SHORT), load_method("fixed"))
        alones = evaluate(alone, digits, digits.dataset.validation).item()
        assert alones == pytest.approx(accuracy.item(), abs=0.003)


# Precision and mistakes


@pytest.mark.parametrize("seeds", [0, [0, 1]])
def test_bfloat16_trains_as_well_and_keeps_weights_and_losses_in_float32(digits: Problem, seeds: Any) -> None:
    accuracies, first_logits = {}, {}
    for precision in ("float32", "bfloat16"):
        recipe = Recipe(epochs=6, batch_size=50, learning_rate=0.05, precision=precision)
        run, losses = Distillation(digits, seeds, recipe=recipe), []
        first_logits[precision] = run.observe().student_logits.detach().float()
        student = train(run, load_method("fixed:4"), lambda _, __, loss: losses.append(loss.detach()))  # noqa: B023
        assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses)
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in student.parameters())
        accuracies[precision] = evaluate(student, digits, digits.dataset.validation).mean().item()
    # It would be a silent no-op if the numbers were the same; bfloat16 has 8 bits.
    difference = (first_logits["float32"] - first_logits["bfloat16"]).abs().max().item()
    assert 1e-4 < difference < 0.05
    assert accuracies["bfloat16"] == pytest.approx(accuracies["float32"], abs=0.05)


@pytest.mark.parametrize("seeds", [0, [0, 1]])
def test_a_teacher_of_other_classes_is_one_clear_error(make_problem: ProblemMaker, seeds: Any) -> None:
    problem = make_problem(*numbered(4), teacher_logits=torch.zeros(4, 5))
    with pytest.raises(BadInputError, match=r"2 class outputs, teacher 5 \(shapes \(.*2\) and \(.*5\)\)"):
        Distillation(problem, seeds).observe()
