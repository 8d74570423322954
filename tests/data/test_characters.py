"""Python's help pages as data: numbered by frequency, each paragraph once, cut into disjoint windows."""

from __future__ import annotations

import sys

import pytest
import torch

from rltemp.data.characters import LENGTH, NUM_SYMBOLS, encode, help_pages
from rltemp.data.dataset import Dataset
from rltemp.data.sources import load_dataset
from rltemp.errors import BadInputError


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("characters")


def windows(data: Dataset) -> list[tuple[int, ...]]:
    splits = (data.train, data.probe, data.validation, data.test)
    whole = torch.cat([torch.cat([split.inputs, split.known_labels[:, -1:]], 1) for split in splits])
    return [tuple(row) for row in whole.tolist()]


def test_characters_are_numbered_by_frequency_and_rare_ones_share_a_number() -> None:
    text = "".join(chr(ord("A") + place) * (70 - place) for place in range(70))
    symbols = encode(text)
    assert symbols[[0, 70]].tolist() == [1, 2]
    assert symbols.bincount().tolist() == [sum(70 - place for place in range(63, 70)), *range(70, 7, -1)]


def test_each_paragraph_of_the_help_pages_is_there_once() -> None:
    paragraphs = help_pages().split("\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1500
    assert "Assert statements are a convenient way to insert debugging assertions into a program:" in paragraphs
    assert not any("----" in paragraph or "  " in paragraph for paragraph in paragraphs)


def test_the_splits_have_known_sizes_and_every_label_is_the_next_character(data: Dataset) -> None:
    sizes = [len(split) for split in (data.train, data.probe, data.validation, data.test)]
    assert sizes == [3200, 200, 300, 500]
    assert (data.image_shape, data.num_classes) == ((LENGTH,), NUM_SYMBOLS)
    for split in (data.train, data.probe, data.validation, data.test):
        assert torch.equal(split.inputs[:, 1:], split.known_labels[:, :-1])
        assert 0 <= int(split.inputs.min()) <= int(split.inputs.max()) < NUM_SYMBOLS
        assert (split.inputs == 0).float().mean() < 0.02  # what is too rare for a number


def test_the_windows_of_all_splits_are_the_text_cut_up_without_overlap(data: Dataset) -> None:
    cut = encode(help_pages())[: 4200 * (LENGTH + 1)].view(4200, LENGTH + 1)
    assert sorted(windows(data)) == sorted(tuple(row) for row in cut.tolist())


def test_a_split_seed_draws_which_stretches_are_where(data: Dataset) -> None:
    first = windows(data)
    same, other = (windows(load_dataset("characters", split_seed=seed)) for seed in (0, 1))
    assert same == first != other
    one, another = ({tuple(all_of[start : start + 20]) for start in range(0, 4200, 20)} for all_of in (first, other))
    assert one == another


def test_a_python_without_help_pages_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(BadInputError, match="task 'characters' needs the help pages of Python") as refusal:
        load_dataset("characters")
    assert "\n" not in str(refusal.value)
