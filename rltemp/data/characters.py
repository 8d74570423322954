"""Text as data: the help pages that come with Python itself, character by character.

Versions of Python differ a little in the text; the number of symbols and the sizes of the splits are the same in all.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from rltemp.data.dataset import Dataset, Split
from rltemp.errors import BadInputError
from rltemp.models.random_numbers import random_stream

NUM_SYMBOLS = 64
"""The 63 most frequent characters, and symbol 0 for all others (under 1 % of the text)."""

LENGTH = 64
"""Characters that a network reads at once, T."""

STRETCHES = (160, 10, 15, 25)
"""Of train, probe, validation and test."""

WINDOWS_IN_A_STRETCH = 20


def characters(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load the help pages as sequences of `LENGTH` characters, each labelled with the one that follows it.

    The text is cut into stretches of 1,300 characters, 20 windows of `LENGTH + 1` each, and every split gets whole
    stretches: 3,200 windows for training, 200 probe, 300 validation, 500 test. No two windows share a character.

    Raises:
        BadInputError: Where this Python comes without its help pages.
    """
    count = sum(STRETCHES)
    symbols = encode(help_pages())[: count * WINDOWS_IN_A_STRETCH * (LENGTH + 1)]
    order = torch.randperm(count, generator=random_stream(split_seed, "split"))
    stretches = symbols.view(count, WINDOWS_IN_A_STRETCH, LENGTH + 1)[order]
    windows = [stretch.flatten(0, 1) for stretch in torch.split(stretches, list(STRETCHES))]
    train, probe, validation, test = (Split(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in windows)
    return Dataset("characters", train, probe, validation, test, NUM_SYMBOLS, mean=None, std=None, augment=False)


def help_pages() -> str:
    """Return what `help("topics")` lists, about 330,000 characters: a paragraph a line, and each paragraph once.

    Pages quote each other, and a paragraph in two splits would be known by heart. Ruled lines of tables are left out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadInputError(
            f"task 'characters' needs the help pages of Python's standard library, which are not here ({error}); "
            "install Python's documentation (pydoc), or choose another task"
        ) from error
    pages = "\n\n".join(topics[name] for name in sorted(topics))
    lines = (" ".join(paragraph.split()) for paragraph in re.sub(r"([-=*~+])\1{3,}", "", pages).split("\n\n"))
    return "\n".join(dict.fromkeys(lines))


def encode(text: str) -> Tensor:
    """Number the characters of a text by how frequent they are in it: `[len(text)]`, int64, 1 to 63, and 0 for others.

    >>> encode("abbb a").tolist()
    [2, 1, 1, 1, 3, 2]
    """
    counts = Counter(text)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[: NUM_SYMBOLS - 1]
    number = {character: place for place, character in enumerate(frequent, 1)}
    return torch.tensor([number.get(character, 0) for character in text])
