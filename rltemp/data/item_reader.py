"""Inputs that are made when they are needed: items that a torch data set draws at random, and pictures in files."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rltemp.errors import BadInputError, TrainingStoppedError, one_line
from rltemp.models.nested import Inputs, mapped
from rltemp.models.random_numbers import drawing_from, random_stream
from rltemp.pictures.settings import AS_THEY_ARE, Pictures
from rltemp.pictures.views import changed, still


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


Request = list[tuple[int, int | None]]
"""Pictures by their places, each with the number that draws its changes; None: it stays as it is."""


@dataclass(frozen=True)
class PictureReader(ItemReader):
    """Pictures in files, `[3, S, S]` uint8, which worker processes can read ahead.

    Each picture is changed by a number of its own, so that it depends neither on the others nor on who reads it.

    Args:
        pictures: How they are made.
        workers: Processes that read ahead; 0: this process reads when it is asked, as each of a worker pool does.
    """

    pictures: Pictures = AS_THEY_ARE
    workers: int = 0

    @classmethod
    def of(cls, files: Sequence[str], pictures: Pictures, workers: int = 0) -> PictureReader:
        """A reader of all these files."""
        places, cpu = torch.arange(len(files)), torch.device("cpu")
        return cls((FileNames(files),), places, torch.stack, _as_they_are, False, cpu, pictures, workers)

    def read(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures `[*index.shape, 3, S, S]`, changed by the generator's numbers where there is one."""
        [found] = self.ahead([self.request(index, generator)], workers=0)
        return found.view(*index.shape, *found.shape[1:])

    def request(self, index: Tensor, generator: torch.Generator | None = None) -> Request:
        """What asks for the pictures at positions of any shape."""
        places = self.places[index.flatten().cpu()].tolist()
        if generator is None or not self.pictures.parts:
            return [(place, None) for place in places]
        return list(zip(places, torch.randint(2**62, (len(places),), generator=generator).tolist(), strict=True))

    def ahead(self, requests: Iterable[Request], workers: int | None = None) -> Iterator[Tensor]:
        """The pictures of one request after another, `[n, 3, S, S]`; requests are taken a few batches early.

        Raises:
            BadInputError: Where a file cannot be read.
            TrainingStoppedError: Where a worker is gone.
        """
        count = self.workers if workers is None else workers
        if multiprocessing.parent_process() is not None:  # others of a pool read beside it, and new ones start slowly
            count = 0
        loader = DataLoader(_Reading(self), sampler=requests, batch_size=None, num_workers=count)
        try:
            for found in loader:
                if isinstance(found, BadInputError):
                    raise found
                yield found.to(self.device)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise TrainingStoppedError(
                f"a process that reads pictures is gone ({one_line(str(error))[:200]}); the same command goes on from "
                "the last checkpoint. Where memory was short, give fewer --data-workers"
            ) from error

    def made(self, request: Request) -> Tensor:
        """The pictures of one request, on the CPU."""
        files = [self._item(place) for place, _ in request]
        seeds = [seed for _, seed in request]
        with warnings.catch_warnings():  # Pillow's, about what it ignores in a file
            warnings.simplefilter("ignore")
            return torch.stack(
                [
                    still(file, self.pictures) if seed is None else changed(file, self.pictures, seed)
                    for file, seed in zip(files, seeds, strict=True)
                ]
            )


class FileNames(Sequence[str]):
    """Paths in one array: as objects of their own, a million of them would be copied into every worker."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        return os.fsdecode(bytes(self._files[place]))


class _Reading(Dataset[Tensor | BadInputError]):
    """What a worker does; an error is handed over, for `DataLoader` would put a traceback into its text."""

    def __init__(self, reader: PictureReader) -> None:
        self._reader = reader

    def __getitem__(self, request: Request) -> Tensor | BadInputError:
        try:
            return self._reader.made(request)
        except BadInputError as error:
            return error


def _as_they_are(batch: Tensor) -> Tensor:
    return batch
