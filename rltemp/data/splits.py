"""Splits of data sets: a pool split class by class, and what its samples are centred and scaled by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.data.dataset import Dataset, Split
from rltemp.errors import BadInputError
from rltemp.models.random_numbers import random_stream
from rltemp.pictures.settings import AS_THEY_ARE, Pictures

POOL_SHARES = (0.05, 0.05)
"""Of a training pool: probe, validation; the rest is for training."""
MEASURED = 500
"""Pictures whose mean and deviation stand for those of all that are read from files."""


def split_pool(
    name: str,
    pool: Split,
    test: Split,
    num_classes: int,
    split_seed: int,
    validation: Split | None = None,
    pictures: Pictures = AS_THEY_ARE,
) -> Dataset:
    """Make a data set of pictures from a training pool, of which probe and validation get 5 % each.

    The shares are taken class by class, and are at least one sample; so a class needs 3 samples in the pool, or 2 where
    the validation split is given.
    """
    shares = POOL_SHARES if validation is None else POOL_SHARES[:1]
    train, probe, *rest = (pool.take(index) for index in split_by_class(pool.targets, split_seed, shares))
    given = rest[0] if validation is None else validation
    scale = pictures.scale or mean_and_std(some_pictures(train))
    found = Dataset(name, train, probe, given, test, num_classes, *scale, augment=True)
    return _changed(found, pictures)


def adjusted(dataset: Dataset, pictures: Pictures) -> Dataset:
    """A data set whose pictures are in memory, changed and normalised otherwise.

    Raises:
        BadInputError: Where it holds no pictures, or they would have to be read again.
    """
    if pictures == AS_THEY_ARE:
        return dataset
    inputs = dataset.train.inputs
    if pictures.image_size is not None or not (isinstance(inputs, Tensor) and inputs.dtype == torch.uint8):
        raise BadInputError(
            f"task {dataset.name}: image_size and resize are for imagefolder:PATH, augment and normalise for pictures "
            "of 8 bits as well; leave them out"
        )
    return _changed(dataset, pictures)


def _changed(dataset: Dataset, pictures: Pictures) -> Dataset:
    """The data set with what pictures are changed, and what they are normalised by, where that is given."""
    if pictures.augment is not None:
        dataset = replace(dataset, augment=bool(pictures.parts), augmentation=pictures.parts or dataset.augmentation)
    if pictures.scale is None:
        return dataset
    named, channels = len(pictures.scale[0]), dataset.image_shape[0]
    if named not in (1, channels):
        raise BadInputError(f"pictures: normalise names {named} channels; those of task {dataset.name} have {channels}")
    mean, std = (value.expand(channels) for value in pictures.scale)
    return replace(dataset, mean=mean, std=std)


def some_pictures(split: Split) -> Tensor:
    """All pictures of a split, `[N, C, H, W]`; of one that is read from files, up to `MEASURED` at even distances."""
    found: Tensor = split.inputs
    if split.reads:
        found = split.batch(torch.arange(0, len(split), -(-len(split) // MEASURED))).inputs
    return found


def cut(name: str, samples: Split, index: Sequence[Tensor], num_classes: int) -> Dataset:
    """Make a data set of samples at the positions of its splits: train, probe, validation, test; uint8 or a table."""
    train, probe, validation, test = (samples.take(positions) for positions in index)
    statistics = mean_and_std if train.inputs.dtype == torch.uint8 else column_mean_and_std
    return Dataset(name, train, probe, validation, test, num_classes, *statistics(train.inputs), augment=False)


def split_by_class(labels: Tensor, seed: int, shares: tuple[float, ...]) -> list[Tensor]:
    """Return the positions of what is left, then those of one split for each share, each in random order.

    The shares are taken class by class, rounded, and are at least one sample.
    """
    shuffled = torch.randperm(len(labels), generator=random_stream(seed, "split"))
    counts = labels.bincount()
    # Each sample's rank within its class: its place in an order sorted by class, less the place of the class.
    by_class = labels[shuffled].argsort(stable=True)
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels))
    rank -= (counts.cumsum(0) - counts)[labels[shuffled]]
    ends = torch.stack([(counts * share).round().long().clamp(min=1) for share in shares]).cumsum(0)
    split = (rank >= ends[:, labels[shuffled]]).sum(0)
    return [shuffled[split == number] for number in (len(shares), *range(len(shares)))]


def rows_as_images(rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    """Make images `[N, F, 1, 1]` of a table `[N, F]`, with its labels `[N]`."""
    return Split(torch.from_numpy(rows.astype(np.float32))[:, :, None, None], torch.from_numpy(labels.astype(np.int64)))


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and deviation per channel of uint8 images, from counts of the 256 values."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    share, values = counts / counts.sum(1, keepdim=True), torch.arange(256).double()
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=0).sqrt()
    return mean.float(), _divisor(std)


def column_mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column of a table `[N, F, 1, 1]`."""
    columns = images[:, :, 0, 0].double()
    return columns.mean(0).float(), _divisor(columns.std(0, correction=0))


def _divisor(std: Tensor) -> Tensor:
    """Return the deviations; 1 for a channel that is the same everywhere: it carries nothing and becomes zeros."""
    return torch.where(std > 1e-6, std, 1.0).float()
