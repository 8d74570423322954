"""Inputs inside each other: every tensor is reached, and the form stays."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rltemp.models.nested import joined, mapped, rows, tensors


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def nested() -> dict[str, object]:
    return {
        "tensor": torch.tensor([1, 2, 3]),
        "tuple": (torch.tensor([4, 5, 6]), [torch.tensor([7, 8, 9])]),
        "pair": Pair(torch.tensor([10, 11, 12]), torch.tensor([13, 14, 15])),
        "word": "stays",
        "nothing": None,
    }


def test_every_tensor_is_there_in_order() -> None:
    assert [tensor[0].item() for tensor in tensors(nested())] == [1, 4, 7, 10, 13]
    assert [*tensors("word")] == []


def test_a_function_reaches_every_tensor_and_the_form_stays() -> None:
    found = mapped(lambda tensor: 2 * tensor, nested())
    assert [tensor[-1].item() for tensor in tensors(found)] == [6, 12, 18, 24, 30]
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in nested().items()
    }
    assert isinstance(found["tuple"][1], list)
    assert found["word"] == "stays"


def test_structures_of_one_form_are_met_tensor_by_tensor() -> None:
    found = mapped(lambda one, other, third: one + other - third, nested(), nested(), nested())
    assert all(torch.equal(one, other) for one, other in zip(tensors(found), tensors(nested()), strict=True))
    with pytest.raises(ValueError, match="zip"):
        mapped(torch.add, (torch.ones(1),), (torch.ones(1), torch.ones(1)))


def test_rows_are_gathered_by_positions_of_any_shape() -> None:
    found = rows(nested(), torch.tensor([[2, 0], [1, 1]]))
    assert found["tensor"].tolist() == [[3, 1], [2, 2]]
    assert found["pair"].right.tolist() == [[15, 13], [14, 14]]


def test_samples_are_joined_along_the_first_axis() -> None:
    found = joined(nested(), rows(nested(), torch.tensor([0])))
    assert found["tuple"][1][0].tolist() == [7, 8, 9, 7]
