"""The batches of a run: which samples each student gets, and how it sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.own_tasks import Noisy, clusters
from torch import Tensor

from rltemp.data.batches import Batches, augmentation_generator
from rltemp.data.dataset import Dataset, Split
from rltemp.data.own import own_dataset
from rltemp.errors import BadInputError

ROWS, LABELS = clusters(40)
GIVEN = {"test": (ROWS, LABELS), "validation": (ROWS, LABELS), "probe": (ROWS, LABELS)}


def dataset(source: Any) -> Dataset:
    """All 40 samples are for training."""
    return own_dataset("own", {"train": source, **GIVEN})


FIXED, DRAWN = dataset((ROWS, LABELS)), dataset(Noisy(ROWS, LABELS))


def batches(data: Dataset, seeds: Any, subset: Tensor | None = None, size: int = 6) -> Batches:
    return Batches(data, data.train, seeds, size, subset)


def test_an_epoch_shows_a_sample_once_and_the_next_in_another_order() -> None:
    run = batches(FIXED, 0)
    assert (run.size, run.an_epoch) == (40, 6)
    epochs = [torch.cat([run.positions(6 * epoch + step) for step in range(6)]) for epoch in range(2)]
    assert [len(set(epoch.tolist())) for epoch in epochs] == [36, 36]
    assert not torch.equal(*epochs)


def test_the_batch_of_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    run = batches(FIXED, 3)
    wanted = [batches(FIXED, 3).positions(step) for step in range(14)]
    for step in (13, 0, 7, 5, 13):
        assert torch.equal(run.positions(step), wanted[step])


def test_each_of_several_students_gets_the_batches_that_it_gets_alone() -> None:
    for data in (FIXED, DRAWN):
        run = batches(data, [4, 2, 4])
        for step in (0, 8):
            positions = run.positions(step)
            assert positions.shape == (3, 6)
            found = run.at(step, positions)
            for place, seed in enumerate((4, 2, 4)):
                alone = batches(data, seed)
                assert torch.equal(alone.positions(step), positions[place])
                one = alone.at(step, positions[place])
                assert torch.equal(found.inputs[place], one.inputs)
                assert torch.equal(found.labels[place], one.labels)
                assert found.mask is None


def test_what_is_drawn_depends_on_the_seed_and_the_step() -> None:
    run, positions = batches(DRAWN, 1), torch.arange(6)
    one, same, later = (run.at(step, positions).inputs for step in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, later)
    assert not torch.equal(one, batches(DRAWN, 2).at(0, positions).inputs)
    assert torch.equal(one, DRAWN.batch(DRAWN.train, positions, augmentation_generator(1, 0)).inputs)
    torch.testing.assert_close(one, ROWS[:6], atol=0.6, rtol=0)


def test_a_student_sees_its_own_part_of_the_samples() -> None:
    common = batches(FIXED, [0, 1], torch.arange(0, 40, 2))
    assert (common.size, common.an_epoch) == (20, 3)
    assert (common.positions(0) % 2 == 0).all()
    own = batches(FIXED, [0, 1], torch.stack([torch.arange(20), torch.arange(20, 40)]))
    for step in range(3):
        first, second = own.positions(step)
        assert (first < 20).all()
        assert (second >= 20).all()


def test_masks_and_nested_inputs_of_several_students_stand_side_by_side() -> None:
    labels = torch.arange(80).view(40, 2) % 3
    split = Split({"a": ROWS, "b": (LABELS,)}, labels, labels > 0)
    found = Batches(DRAWN, split, [0, 1], 6).at(0, torch.tensor([[0, 1], [5, 6]]))
    assert torch.equal(found.inputs["a"], ROWS[torch.tensor([[0, 1], [5, 6]])])
    assert found.inputs["b"][0].tolist() == [[0, 1], [1, 2]]
    assert found.mask.tolist() == [[[False, True], [True, False]], [[True, True], [False, True]]]


def test_samples_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(BadInputError, match="batch size 41 is above the 40 training samples"):
        batches(FIXED, 0, size=41)
    with pytest.raises(BadInputError, match="batch size 6 is above the 5 training samples"):
        batches(FIXED, 0, torch.arange(5))
