"""Inputs that a torch data set makes item by item, when they are needed: those that it draws at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rltemp.models.nested import Inputs, mapped
from rltemp.models.random_numbers import drawing_from, random_stream


@dataclass(frozen=True)
class ItemReader:
    """The inputs of a map-style data set.

    Args:
        sources: Data sets of one kind; positions count the items of the first, then those of the next.
        places: `[N]`, positions of the items that are there.
        collate: From a list of items to a batch.
        inputs_of: From a batch to its inputs.
        draws: Whether the data set draws random numbers for an item.
        device: Where inputs go.
    """

    sources: tuple[Any, ...]
    places: Tensor
    collate: Callable[[list[Any]], Any]
    inputs_of: Callable[[Any], Inputs]
    draws: bool
    device: torch.device

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: Tensor, generator: torch.Generator | None = None) -> Inputs:
        """Inputs `[*index.shape, ...]`; without a generator an item is drawn as it was the last time."""
        places = self.places[index.flatten().cpu()].tolist()
        with drawing_from(generator or random_stream(places[0] if places else 0, "items")):
            inputs = self.inputs_of(self.collate([self._item(place) for place in places]))
        return mapped(lambda tensor: tensor.view(*index.shape, *tensor.shape[1:]).to(self.device), inputs)

    def take(self, index: Tensor) -> ItemReader:
        """The items at some positions."""
        return replace(self, places=self.places[index.cpu()])

    def and_then(self, other: ItemReader) -> ItemReader:
        """These items, and then those of another reader."""
        sources: Sequence[Any] = self.sources
        if other.sources == self.sources:
            return replace(self, places=torch.cat([self.places, other.places]))
        size = sum(len(source) for source in sources)
        return replace(self, sources=(*sources, *other.sources), places=torch.cat([self.places, other.places + size]))

    def to(self, device: torch.device | str) -> ItemReader:
        """The same, whose inputs go to `device`."""
        return replace(self, device=torch.device(device))

    def _item(self, place: int) -> Any:
        for source in self.sources:
            if place < len(source):
                return source[place]
            place -= len(source)
        raise IndexError(place)
