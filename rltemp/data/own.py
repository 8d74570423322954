"""Data of a user's own: torch data sets, tensors, arrays or anything that yields items, made a `Dataset`.

A *batch* is what a data set's items are collated to: `(inputs, labels)`, `(inputs, labels, mask)`, or a dictionary
whose `labels` and `mask` are taken out (what stands under `inputs`, or else the rest, are the inputs). Anything else
is inputs without labels. Labels are whole numbers, `[N]` or `[N, T]` of tokens; -100 says that there is no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from rltemp.data.dataset import Dataset, Split
from rltemp.data.item_reader import ItemReader
from rltemp.data.splits import mean_and_std, split_by_class
from rltemp.errors import BadInputError, one_line
from rltemp.io.own_code import own_code
from rltemp.models.nested import Inputs, tensors
from rltemp.models.random_numbers import drawing_from, generator_states, random_stream

NO_SAMPLE = -100
"""A label that says that there is no sample, as torch's losses have it."""
SHARES = {"probe": 0.1, "validation": 0.1, "test": 0.2}
"""Of the training data, for a split that is not given."""
MOST_BYTES = 2**31
"""Of inputs that are kept in memory; larger ones are read item by item."""

ITEM_BYTES = 500
"""Of an item beside its tensors, about."""

Collate = Callable[[list[Any]], Any]


def own_dataset(name: str, given: Mapping[str, Any], split_seed: int = 0, collate: Collate | None = None) -> Dataset:
    """Make a data set of what a user has; the splits that are not there are cut from the training data.

    Args:
        name: Of the task.
        given: `train`, and any of `probe`, `validation`, `test`.
        split_seed: Draws which samples are cut.
        collate: From a list of items to a batch; torch's `default_collate` by default.

    Raises:
        BadInputError: Where a split is empty or cannot be read, or labels are none.
    """
    splits = {part: collected(value, part, collate) for part, value in given.items() if value is not None}
    train, cut_at = splits["train"], {}
    missing = {part: share for part, share in SHARES.items() if part not in splits}
    if missing:
        positions = _positions(train, split_seed, tuple(missing.values()))
        cut_at = dict(zip(("train", *missing), positions, strict=True))
        splits |= {part: train.take(index) for part, index in cut_at.items()}
    train = splits["train"]
    for part, split in splits.items():
        if (split.labels is None) != (train.labels is None):
            raise BadInputError(f"{part} and train: either both need labels or neither")
    mean, std = mean_and_std(train.inputs) if _pictures(train.inputs) else (None, None)
    probe, validation, test = (splits[part] for part in ("probe", "validation", "test"))
    return Dataset(name, train, probe, validation, test, 0, mean, std, augment=False, cut_at=cut_at)


def collected(source: Any, part: str, collate: Collate | None = None) -> Split:
    """Read one split into memory; items that a data set draws at random are read again whenever they are needed.

    Args:
        source: A torch data set, a `DataLoader`, tensors, arrays, or what yields items.
        part: Its name, for messages.
        collate: As in `own_dataset`.

    Raises:
        BadInputError: Where it holds nothing, or no batch can be made of its items.
    """
    if isinstance(source, Split):
        return source
    if isinstance(source, DataLoader):
        source, collate = source.dataset, collate or source.collate_fn
    if isinstance(source, TensorDataset):
        source = source.tensors if len(source.tensors) > 1 else source.tensors[0]
    with own_code(f"{part} (a {type(source).__name__})"):
        if _is_batch(source):
            with _batched(part):
                return _split(source, part)
        return _of_items(source, part, collate or default_collate)


def _of_items(source: Any, part: str, collate: Collate) -> Split:
    """A split of what a data set, a list or an iterator has."""
    if isinstance(source, (str, bytes)) or not (isinstance(source, Iterable) or hasattr(source, "__getitem__")):
        raise BadInputError(f"{part} is a {type(source).__name__}; needed: a torch Dataset, tensors, arrays or items")
    with drawing_from(random_stream(0, "items")):
        before = generator_states()
        items = list(_items(source, part))
        draws = generator_states() != before
    if not items:
        raise BadInputError(f"{part} is empty; needed: items, as in (input, label)")
    with _batched(part):
        split = _split(collate(items), part)
    large = sum(tensor.nbytes for tensor in tensors(split.inputs)) > MOST_BYTES
    if not (draws or large) or not _has_places(source):
        return split
    reader = ItemReader((source,), torch.arange(len(items)), collate, _inputs_of, draws, torch.device("cpu"))
    return Split(reader, split.labels, split.mask)


@contextmanager
def _batched(part: str) -> Iterator[None]:
    """Within, values become tensors."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        raise BadInputError(
            f"{part}: no batch can be made of it ({one_line(str(error).partition(chr(10))[0])}). Give numbers, "
            "in items of one shape, or collate=, which pads them"
        ) from error


def _items(source: Any, part: str) -> Iterator[Any]:
    """Every item; of a data set with places, up to its length, which iteration would not end at."""
    if _has_places(source):
        yield from (source[place] for place in range(len(source)))
        return
    size = 0
    for item in source:
        size += ITEM_BYTES + sum(tensor.nbytes for tensor in tensors(item))
        if size > MOST_BYTES:
            raise BadInputError(
                f"{part} (a {type(source).__name__}) does not end, or is larger than {MOST_BYTES >> 30} GiB; give a "
                "torch Dataset that has a length"
            )
        yield item


def _has_places(source: Any) -> bool:
    sized = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return sized and not isinstance(source, (IterableDataset, Mapping))


def _is_batch(source: Any) -> bool:
    """Whether a value is a whole split already: an array, or a structure of arrays."""
    if isinstance(source, (Tensor, np.ndarray)):
        return True
    if isinstance(source, Mapping):
        return all(_is_batch(value) for value in source.values())
    return isinstance(source, tuple) and bool(source) and all(value is None or _is_batch(value) for value in source)


def _parts(batch: Any) -> tuple[Inputs, Any, Any]:
    """The inputs, labels and mask of a batch."""
    if isinstance(batch, Mapping):
        rest = dict(batch)
        labels, mask = rest.pop("labels", None), rest.pop("mask", None)
        return rest.get("inputs", rest), labels, mask
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        inputs, labels, *mask = batch
        return inputs, labels, *(mask or [None])
    return batch, None, None


def _inputs_of(batch: Any) -> Inputs:
    return _as_tensors(_parts(batch)[0])


def _split(batch: Any, part: str) -> Split:
    inputs, labels, mask = _parts(batch)
    inputs = _as_tensors(inputs)
    if not next(tensors(inputs), torch.empty(0)).numel():
        raise BadInputError(f"{part} is empty; needed: tensors or arrays with samples along the first axis")
    _check_inputs(inputs, part)
    if labels is None:
        return Split(inputs, None)
    labels = _labels(labels, part)
    known = labels != NO_SAMPLE
    if mask is not None:
        mask = torch.as_tensor(mask)
        if mask.shape != known.shape:
            raise BadInputError(f"{part}: the mask has shape {tuple(mask.shape)}, the labels {tuple(known.shape)}")
        known = known & mask.bool()
    if not bool(known.any()):
        raise BadInputError(f"{part}: every label is {NO_SAMPLE} or masked, so that there is no sample")
    return Split(inputs, labels.masked_fill(~known, 0), None if bool(known.all()) else known)


def _check_inputs(inputs: Inputs, part: str) -> None:
    """Refuse inputs that are no number; an infinite one may be meant, as in a mask that is added."""
    for tensor in tensors(inputs):
        if tensor.layout != torch.strided or not tensor.dim():
            raise BadInputError(f"{part}: needed are dense tensors with samples along the first axis")
        if tensor.is_floating_point() and bool((wrong := tensor.isnan()).any()):
            place = wrong.nonzero()[0].tolist()
            raise BadInputError(f"{part}: an input is NaN, at {place}; fill in what is missing, or leave it out")


def _labels(labels: Any, part: str) -> Tensor:
    """Labels as int64.

    Raises:
        BadInputError: Where they are no whole numbers, or negative but for -100.
    """
    found = torch.as_tensor(np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels)
    if found.is_floating_point() or found.dtype == torch.bool or found.is_complex():
        raise BadInputError(f"{part}: labels must be whole numbers, the class of each sample; got {found.dtype}")
    found = found.long()
    wrong = (found < 0) & (found != NO_SAMPLE)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise BadInputError(
            f"{part}: label {int(found[tuple(place)])} at {place} is no class; needed: 0 or more, or {NO_SAMPLE} where "
            "there is no sample"
        )
    return found


def _as_tensors(inputs: Any) -> Inputs:
    """Arrays as tensors; NumPy's float64 as float32, which networks compute in. No tensor brings a graph."""
    if isinstance(inputs, Tensor):
        return inputs.detach()
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(
            np.ascontiguousarray(inputs.astype(np.float32) if inputs.dtype == np.float64 else inputs)
        )
    if isinstance(inputs, Mapping):
        return {name: _as_tensors(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        values = [_as_tensors(value) for value in inputs]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return inputs


def _positions(train: Split, seed: int, shares: tuple[float, ...]) -> list[Tensor]:
    """Positions of what stays for training and of each share: class by class where every class has enough samples."""
    labels, size = train.labels, len(train)
    if labels is not None and labels.dim() == 1 and train.mask is None:
        counts = labels.bincount()
        if int(counts[counts > 0].min()) >= 2 * len(shares):
            return split_by_class(labels, seed, shares)
    order = torch.randperm(size, generator=random_stream(seed, "split"))
    ends = [size - sum(max(1, round(size * share)) for share in shares)]
    for share in shares[:-1]:
        ends.append(ends[-1] + max(1, round(size * share)))
    if ends[0] < 1:
        raise BadInputError(f"train holds {size} samples; needed: {len(shares) + 1} or more, or give the other splits")
    return list(order.tensor_split(ends))


def _pictures(inputs: Inputs) -> bool:
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4
