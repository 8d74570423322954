"""A user's data become splits: whatever holds them, whether items are fixed or drawn, and what is cut from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.own_tasks import Noisy, Rows, clusters
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rltemp import BadInputError
from rltemp.data import own
from rltemp.data.dataset import Dataset, Split
from rltemp.data.own import collected, own_dataset
from rltemp.models.random_numbers import random_stream

ROWS, LABELS = clusters(40)


class Stream(IterableDataset[Any]):
    """The same rows as a stream, whose length nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        return iter([*zip(ROWS, LABELS, strict=True)])


def items() -> Iterator[Any]:
    yield from zip(ROWS.tolist(), LABELS.tolist(), strict=True)


def list_of_items() -> list[Any]:
    return [(row, label.item()) for row, label in zip(ROWS, LABELS, strict=True)]


# What holds the data


@pytest.mark.parametrize(
    "source",
    [
        (ROWS, LABELS),
        (ROWS.numpy(), LABELS.numpy()),
        {"inputs": ROWS, "labels": LABELS},
        TensorDataset(ROWS, LABELS),
        DataLoader(TensorDataset(ROWS, LABELS), batch_size=7, shuffle=True),
        Rows(ROWS, LABELS),
        DataLoader(Rows(ROWS, LABELS), batch_size=7, drop_last=True),
        Stream(),
        DataLoader(Stream(), batch_size=7),
        list_of_items(),
        Split(ROWS, LABELS),
    ],
    ids=lambda source: type(source).__name__,
)
def test_the_same_samples_in_order_whatever_holds_them(source: Any) -> None:
    found = collected(source, "train")
    assert torch.equal(found.inputs, ROWS)
    assert torch.equal(found.labels, LABELS)
    assert found.labels.dtype == torch.int64
    assert found.mask is None
    assert not found.reads


def test_a_generator_is_read_once_and_python_numbers_become_tensors() -> None:
    found = collected(
        items(), "train", collate=lambda batch: (torch.tensor([row for row, _ in batch]), [y for _, y in batch])
    )
    assert torch.equal(found.inputs, ROWS)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(np.float64, torch.float32), (np.float32, torch.float32), (np.int64, torch.int64), (np.uint8, torch.uint8)],
)
def test_numpys_doubles_become_what_networks_compute_in_and_all_else_stays(given: Any, expected: torch.dtype) -> None:
    inputs = np.arange(12).reshape(4, 3).astype(given)[:, ::-1]  # not contiguous
    for source in ((inputs, np.arange(4)), {"inputs": {"a": inputs}, "labels": np.arange(4)}):
        found = collected(source, "train").inputs
        tensor = found["a"] if isinstance(found, dict) else found
        assert tensor.dtype == expected
        assert tensor.tolist() == inputs.tolist()


def test_a_torch_double_is_left_as_it_was_given() -> None:
    assert collected((ROWS.double(), LABELS), "train").inputs.dtype == torch.float64


def test_a_dictionary_gives_up_labels_and_mask_and_the_rest_are_the_inputs() -> None:
    mask = torch.arange(40) > 2
    found = collected({"left": ROWS, "right": (ROWS, LABELS), "labels": LABELS, "mask": mask}, "train")
    assert set(found.inputs) == {"left", "right"}
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.labels, LABELS.where(mask, 0))
    assert len(found) == 40
    assert len(found.targets) == 37


def test_items_may_be_dictionaries_that_a_collate_pads() -> None:
    texts = [[1, 2, 3], [4], [5, 6]]

    def padded(batch: list[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(item["tokens"]) for item in batch)
        tokens = torch.tensor([item["tokens"] + [0] * (longest - len(item["tokens"])) for item in batch])
        return {"tokens": tokens, "labels": tokens.masked_fill(tokens == 0, -100)}

    sources: list[Any] = [
        DataLoader([{"tokens": text} for text in texts], collate_fn=padded),
        [{"tokens": t} for t in texts],
    ]
    for source, collate in zip(sources, (None, padded), strict=True):
        found = collected(source, "train", collate)
        assert found.inputs["tokens"].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
        assert found.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
        assert found.targets.tolist() == [1, 2, 3, 4, 5, 6]
        assert found.tokens


def test_a_label_of_minus_100_says_that_there_is_no_sample() -> None:
    labels = torch.tensor([[3, -100, 1], [-100, -100, 0]])
    found = collected((torch.zeros(2, 3), labels), "train")
    assert found.mask.tolist() == [[True, False, True], [False, False, True]]
    assert found.labels.tolist() == [[3, 0, 1], [0, 0, 0]]
    assert found.targets.tolist() == [3, 1, 0]
    both = collected((torch.zeros(2, 3), labels, torch.tensor([[True, True, False], [True] * 3])), "train")
    assert both.mask.tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("source", [ROWS, (ROWS, None), TensorDataset(ROWS), {"inputs": ROWS}, [*ROWS]])
def test_labels_may_be_missing(source: Any) -> None:
    found = collected(source, "train")
    assert torch.equal(found.inputs, ROWS)
    assert found.labels is None


# What is drawn at random


def test_a_data_set_that_draws_is_read_again_from_the_streams_it_is_given() -> None:
    found, state = collected(Noisy(ROWS, LABELS), "train"), torch.get_rng_state()
    assert found.reads
    assert found.inputs.draws
    assert torch.equal(found.labels, LABELS)
    index = torch.tensor([[3, 1], [0, 3]])
    one, same, other = (found.batch(index, random_stream(seed, "step")).inputs for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (2, 2, 5)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0, 0], one[1, 1])  # the same row, drawn twice
    torch.testing.assert_close(one, ROWS[index], atol=0.6, rtol=0)


def test_an_evaluation_sees_what_it_saw_the_last_time() -> None:
    dataset = own_dataset("noisy", {"train": Noisy(ROWS, LABELS)})
    assert dataset.views_change
    index = torch.arange(len(dataset.validation))
    first = dataset.batch(dataset.validation, index).inputs
    torch.manual_seed(123)
    assert torch.equal(dataset.batch(dataset.validation, index).inputs, first)
    places = dataset.cut_at["validation"]
    torch.testing.assert_close(first, ROWS[places], atol=0.6, rtol=0)
    assert not torch.equal(first, ROWS[places])


def test_a_fixed_data_set_is_read_item_by_item_once() -> None:
    source = Rows(ROWS, LABELS)
    found = collected(source, "train")
    found.batch(torch.arange(40))
    assert source.reads == 40


def test_inputs_too_large_for_memory_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MOST_BYTES", ROWS.nbytes - 1)
    found = collected(Rows(ROWS, LABELS), "train")
    assert found.reads
    assert not found.inputs.draws
    assert torch.equal(found.batch(torch.tensor([7, 2])).inputs, ROWS[[7, 2]])
    assert not own_dataset("rows", {"train": Rows(ROWS, LABELS)}).views_change


def test_readers_are_taken_from_and_joined() -> None:
    first, second = collected(Noisy(ROWS, LABELS), "train"), collected(Noisy(ROWS + 100, LABELS), "test")
    both = first.take(torch.tensor([5, 6])).and_then(second.take(torch.tensor([7])))
    assert torch.equal(both.labels, LABELS[[5, 6, 7]])
    inputs = both.batch(torch.tensor([2, 0])).inputs
    torch.testing.assert_close(inputs, torch.stack([ROWS[7] + 100, ROWS[5]]), atol=0.6, rtol=0)
    again = both.and_then(first.take(torch.tensor([0])))
    torch.testing.assert_close(again.batch(torch.tensor([3])).inputs, ROWS[:1], atol=0.6, rtol=0)


def test_the_hash_of_what_is_drawn_is_the_same_every_time() -> None:
    one, same, other = (collected(Noisy(rows, LABELS), "train").sha256() for rows in (ROWS, ROWS, ROWS + 1))
    assert one == same != other


# What is cut from the training data


def parts(dataset: Dataset) -> dict[str, Split]:
    return {part: getattr(dataset, part) for part in ("train", "probe", "validation", "test")}


def test_what_is_not_given_is_cut_class_by_class_and_no_sample_is_twice() -> None:
    rows, labels = clusters(400)
    dataset = own_dataset("clusters", {"train": (rows, labels)})
    assert {part: len(split) for part, split in parts(dataset).items()} == {
        "train": 240, "probe": 40, "validation": 40, "test": 80,
    }  # fmt: skip
    for part, split in parts(dataset).items():
        assert torch.equal(split.inputs, rows[dataset.cut_at[part]])
        assert torch.equal(split.labels, labels[dataset.cut_at[part]])
        assert split.labels.bincount().tolist() == [len(split) // 4] * 4
    assert sorted(torch.cat([*dataset.cut_at.values()]).tolist()) == [*range(400)]


def test_the_split_seed_alone_draws_the_cut() -> None:
    one, same, other = (own_dataset("clusters", {"train": (ROWS, LABELS)}, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.cut_at[part], same.cut_at[part]) for part in one.cut_at)
    assert not torch.equal(one.cut_at["train"], other.cut_at["train"])


def test_what_is_given_is_left_as_it_is() -> None:
    given = {part: clusters(12, seed) for seed, part in enumerate(("train", "probe", "validation", "test"))}
    whole = own_dataset("clusters", given)
    assert whole.cut_at == {}
    assert all(torch.equal(split.inputs, given[part][0]) for part, split in parts(whole).items())
    some = own_dataset("clusters", {"train": (ROWS, LABELS), "test": given["test"], "probe": given["probe"]})
    assert set(some.cut_at) == {"train", "validation"}
    assert (len(some.train), len(some.validation)) == (36, 4)
    assert torch.equal(some.test.inputs, given["test"][0])


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        (torch.zeros(40, 3), torch.zeros(40, 3, dtype=torch.long)),
        (ROWS, torch.arange(40)),
        (ROWS, LABELS.masked_fill(torch.arange(40) < 3, -100)),
    ],
    ids=["no labels", "tokens", "rare classes", "masked"],
)
def test_where_classes_cannot_guide_it_the_cut_is_any(source: Any) -> None:
    dataset = own_dataset("own", {"train": source})
    assert [len(split) for split in parts(dataset).values()] == [24, 4, 4, 8]
    assert sorted(torch.cat([*dataset.cut_at.values()]).tolist()) == [*range(40)]


def test_four_samples_are_the_fewest_to_cut() -> None:
    assert [len(split) for split in parts(own_dataset("own", {"train": ROWS[:4]})).values()] == [1, 1, 1, 1]
    with pytest.raises(BadInputError, match="train holds 3 samples; needed: 4 or more, or give the other splits"):
        own_dataset("own", {"train": ROWS[:3]})


# Pictures


def test_bytes_are_normalised_by_the_training_split_and_nothing_else_is() -> None:
    pictures = torch.tensor([[10, 30], [50, 250]], dtype=torch.uint8).repeat(40, 1).view(40, 2, 2, 1)[:40]
    one = pictures[:1], LABELS[:1]
    given = {"train": (pictures[:2], LABELS[:2]), "test": one, "probe": one, "validation": one}
    dataset = own_dataset("pictures", given)
    # The first channel holds 10, 30, 10, 30; the second 50, 250, 50, 250.
    assert (dataset.mean.tolist(), dataset.std.tolist()) == ([20.0, 150.0], [10.0, 100.0])
    found = dataset.batch(dataset.test, torch.tensor([0])).inputs
    assert found.flatten().tolist() == [-1.0, 1.0, -1.0, 1.0]
    assert not dataset.augment
    for inputs in (pictures.float(), pictures.flatten(1)):
        assert own_dataset("own", {"train": (inputs, LABELS)}).mean is None


# What cannot be


class Failing(Rows):
    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        raise KeyError(f"no picture {place}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((ROWS[:0], LABELS[:0]), "train is empty; needed: tensors or arrays with samples along the first axis"),
        ([], "train is empty; needed: items, as in (input, label)"),
        (iter(()), "train is empty; needed: items"),
        (Rows(ROWS[:0], LABELS[:0]), "train is empty; needed: items"),
        (3, "train is a int; needed: a torch Dataset, tensors, arrays or items"),
        ((ROWS, LABELS.float()), "train: labels must be whole numbers, the class of each sample; got torch.float32"),
        ((ROWS, LABELS > 2), "train: labels must be whole numbers, the class of each sample; got torch.bool"),
        ((ROWS, LABELS - 2), "train: label -2 at [0] is no class; needed: 0 or more, or -100"),
        ((ROWS, LABELS[:5]), "needed: inputs [N, ...] and labels [N, ...]; got shapes [(40, 5)] and (5,)"),
        ((ROWS, torch.full((40,), -100)), "train: every label is -100 or masked, so that there is no sample"),
        ((ROWS, LABELS, LABELS < 0), "train: every label is -100 or masked, so that there is no sample"),
        (
            [(ROWS[0], 0), (ROWS[0, :2], 1)],
            "train: no batch can be made of it (stack expects each tensor to be equal",
        ),
        (Failing(ROWS, LABELS), "train (a Failing) raised KeyError: 'no picture 0'. --debug shows where"),
        ((ROWS, np.array(["cat"] * 40)), "can't convert np.ndarray of type numpy.str_"),
        ((np.array([None] * 40), LABELS), "can't convert np.ndarray of type numpy.object_"),
        ((ROWS, LABELS, torch.ones(7)), "train: the mask has shape (7,), the labels (40,)"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(source: Any, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        own_dataset("own", {"train": source})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_splits_agree_on_having_labels() -> None:
    with pytest.raises(BadInputError, match="test and train: either both need labels or neither"):
        own_dataset("own", {"train": (ROWS, LABELS), "test": ROWS})
