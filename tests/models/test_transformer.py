"""The small transformer: its size, what a position sees, and the same numbers stacked as alone."""

from __future__ import annotations

import pytest
import torch

from rltemp.errors import BadInputError
from rltemp.models.networks import build_model, seeded_model
from rltemp.models.stack import StackedStudents
from rltemp.models.trial import tried

LENGTH, SYMBOLS = 12, 11


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(0, SYMBOLS, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("spec", "width", "layers"), [("gpt", 32, 1), ("gpt:24", 24, 1), ("gpt:32x2", 32, 2)])
def test_a_gpt_has_the_parameters_counted_by_hand(spec: str, width: int, layers: int) -> None:
    model = build_model(spec, (LENGTH,), SYMBOLS)
    block = 3 * width * width + width * width + 2 * 4 * width * width + 2 * 2 * width
    expected = (SYMBOLS + LENGTH) * width + layers * block + 2 * width
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_position_sees_what_comes_before_it_and_nothing_after() -> None:
    model = seeded_model("gpt:32x2", (LENGTH,), SYMBOLS, 0)
    tokens = drawn(1, LENGTH)
    logits = model(tokens)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % SYMBOLS
    differences = (model(changed) - logits).abs().amax(-1)[0]
    assert torch.equal(differences[:5], torch.zeros(5))
    assert (differences[5:] > 0).all()
    torch.testing.assert_close(model(tokens[:, :7]), logits[:, :7])  # a shorter sequence is a beginning


def test_the_order_of_what_comes_before_counts() -> None:
    model = seeded_model("gpt:16", (LENGTH,), SYMBOLS, 0)
    one, other = (model(torch.tensor([[*start, 3]]))[0, -1] for start in ((1, 2), (2, 1)))
    assert (one - other).abs().max() > 1e-5


@pytest.mark.parametrize("spec", ["gpt:16", "gpt:24", "gpt:32x2"])
def test_gpts_stacked_answer_and_learn_as_each_alone(spec: str) -> None:
    students = [seeded_model(spec, (LENGTH,), SYMBOLS, seed) for seed in range(3)]
    stack = StackedStudents(students)
    tokens = drawn(3, 4, LENGTH)
    together = stack(tokens)
    assert together.shape == (3, 4, LENGTH, SYMBOLS)
    together.log_softmax(-1)[..., 0].sum().backward()
    gradients = [parameter.grad for parameter in stack.parameters()]
    for position, student in enumerate(students):
        alone = student(tokens[position])
        alone.log_softmax(-1)[..., 0].sum().backward()
        torch.testing.assert_close(together[position], alone, atol=1e-5, rtol=0)
        for parameter, gradient in zip(student.parameters(), gradients, strict=True):
            assert gradient is not None
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
            torch.testing.assert_close(gradient[position], parameter.grad, atol=1e-4, rtol=1e-5)


def test_students_of_a_gpt_are_stacked() -> None:
    traits = tried(lambda seed: seeded_model("gpt:32x2", (LENGTH,), SYMBOLS, seed), drawn(2, LENGTH), "student gpt")
    assert not traits.alone
    assert traits.outputs == (LENGTH, SYMBOLS)


@pytest.mark.parametrize(("spec", "shape"), [("gpt:0x2", (12,)), ("gpt:32x2x2", (12,)), ("gpt", (1, 8, 8))])
def test_a_size_that_cannot_be_and_pictures_are_refused_in_one_line(spec: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match="gpt") as refusal:
        build_model(spec, shape, SYMBOLS)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("spec", ["cnn", "resnet8", "resnet18"])
def test_networks_for_pictures_refuse_tokens(spec: str) -> None:
    with pytest.raises(BadInputError, match=r"images|cannot take"):
        build_model(spec, (LENGTH,), SYMBOLS)
