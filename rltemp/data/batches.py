"""The batches of a run, of one student or of several side by side: which samples, and how each student sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rltemp.data.dataset import Batch, Dataset, Split
from rltemp.data.item_reader import PictureReader, Request
from rltemp.errors import BadInputError
from rltemp.kd.signals import Signals
from rltemp.models.nested import Inputs, mapped
from rltemp.models.random_numbers import random_stream


class Batches:
    """A run's batches; a step's is the same whenever it is asked for.

    Args:
        dataset: How samples become a network's input.
        split: The samples.
        seeds: One student's seed, or one for each of several.
        batch_size: B.
        subset: `[N]` or, for several, `[S, N]`: positions in `split` that each student may see; all by default.
        rows: Of one student's batch, those whose inputs are wanted; all by default.

    Attributes:
        table: The samples as a network takes them, where all fit; see `Dataset.ready`.

    Raises:
        BadInputError: Where the samples do not fill one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        seeds: int | Sequence[int],
        batch_size: int,
        subset: Tensor | None = None,
        rows: slice = slice(None),
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.seeds = seeds
        self.batch_size = batch_size
        self.subset = subset
        self.rows = rows
        self.table = dataset.ready(split)
        self.size = len(split) if subset is None else subset.shape[-1]
        self.an_epoch = self.size // batch_size
        if self.an_epoch < 1:  # such a run would be done before its first step
            raise BadInputError(
                f"batch size {batch_size} is above the {self.size} training samples: "
                "give a smaller batch size or more data"
            )
        self._order = Order(seeds, self.size, batch_size, subset, split.device)
        self._ahead: tuple[int, Iterator[Tensor]] | None = None
        self._latest: tuple[int, Tensor] | None = None

    def positions(self, step: int) -> Tensor:
        """Which samples of the split the batch of a step holds, `[B]` or `[S, B]`."""
        return self._order.positions(step)

    def at(self, step: int, positions: Tensor) -> Batch:
        """The samples at positions `[B]` or `[S, B]`, as the student of each seed sees them in a step."""
        if isinstance(self.split.inputs, PictureReader):
            return self._read(step, positions)
        batch = self._gathered(step, positions)
        return batch if self.rows == slice(None) else batch._replace(inputs=mapped(self._own, batch.inputs))

    def _gathered(self, step: int, positions: Tensor) -> Batch:
        if self.table is not None:
            return self.table.batch(positions)
        if not self.dataset.views_change:
            return self.dataset.batch(self.split, positions)
        if isinstance(self.seeds, int):
            return self.dataset.batch(self.split, positions, augmentation_generator(self.seeds, step))
        views = [
            self.dataset.batch(self.split, rows, augmentation_generator(seed, step))
            for seed, rows in zip(self.seeds, positions, strict=True)
        ]
        return Batch(*(_side_by_side([view[part] for view in views]) for part in range(len(Batch._fields))))

    def _own(self, tensor: Tensor) -> Tensor:
        # A share of the whole batch: what one picture draws depends on those before it.
        return tensor[self.rows]

    def _read(self, step: int, positions: Tensor) -> Batch:
        """The batch of a step from files, of which those of the rest of the epoch are read ahead."""
        if self._latest is None or self._latest[0] != step:
            if self._ahead is None or self._ahead[0] != step:
                # Nothing of this object stands in what is read ahead, so that its workers end with it.
                rest = range(step, step + self.an_epoch - step % self.an_epoch)
                requests = map(partial(_requested, self._order, self.split.inputs, self.rows), rest)
                self._ahead = step, self.split.inputs.ahead(requests)
            self._latest = step, next(self._ahead[1])
            # Workers end with an epoch: those that read for an evaluation then stand alone, and take half the memory.
            self._ahead = (step + 1, self._ahead[1]) if (step + 1) % self.an_epoch else None
        found = self._latest[1]
        shape = (len(found),) if isinstance(self.seeds, int) else positions.shape
        inputs = self.dataset.normalise(found.view(*shape, *found.shape[1:]))
        return Batch(inputs, *self.split.marks(positions))


class Order:
    """Which samples the batch of each step holds; the arguments are those of `Batches`."""

    def __init__(
        self, seeds: int | Sequence[int], size: int, batch_size: int, subset: Tensor | None, device: torch.device
    ) -> None:
        self.seeds, self._size, self._batch_size, self._subset = seeds, size, batch_size, subset
        self._device = device
        self._epochs: dict[int, Tensor] = {}

    def positions(self, step: int) -> Tensor:
        """Positions in the split, `[B]` or `[S, B]`."""
        epoch, within = divmod(step, self._size // self._batch_size)
        if epoch not in self._epochs:  # two are kept: at the end of one, a rule that looks ahead asks for the next
            self._epochs = {one: order for one, order in self._epochs.items() if one == epoch - 1}
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][within]

    def _epoch(self, epoch: int) -> Tensor:
        """Batches of one epoch: `[steps, B]` or `[steps, S, B]`."""
        order = epoch_order(self.seeds, epoch, self._size, self._batch_size).to(self._device)
        if self._subset is None or self._subset.dim() == 1:
            return order if self._subset is None else self._subset[order]
        return self._subset.expand(len(order), -1, -1).gather(-1, order)


def epoch_order(seeds: int | Sequence[int], epoch: int, size: int, batch_size: int) -> Tensor:
    """Shuffle one epoch into batches; the same arguments always give the same batches.

    >>> epoch_order(0, epoch=0, size=7, batch_size=2).shape, epoch_order([0, 1], 0, 7, 2).shape
    (torch.Size([3, 2]), torch.Size([3, 2, 2]))

    Args:
        seeds: A student's seed, or one for each student of a stack.
        epoch: Which one, from 0.
        size: How many samples there are.
        batch_size: B.

    Returns:
        `[steps, B]` or `[steps, S, B]` positions below `size`, each at most once for a student; an incomplete last
        batch is dropped.
    """
    if not isinstance(seeds, int):
        orders = {seed: epoch_order(seed, epoch, size, batch_size) for seed in seeds}
        return torch.stack([orders[seed] for seed in seeds], 1)
    order = torch.randperm(size, generator=random_stream(seeds, "order", epoch))
    return order[: size - size % batch_size].view(-1, batch_size)


def augmentation_generator(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator of one step's augmentation; it depends on nothing but its arguments."""
    return random_stream(seed, "augmentation", step)


def _requested(order: Order, reader: PictureReader, rows: slice, step: int) -> Request:
    """What asks for the pictures of a step, as each student sees them."""
    positions, seeds = order.positions(step), order.seeds
    if isinstance(seeds, int):
        return reader.request(positions, augmentation_generator(seeds, step))[rows]
    pairs = zip(seeds, positions, strict=True)
    return [one for seed, places in pairs for one in reader.request(places, augmentation_generator(seed, step))]


def signals_of(
    batch: Batch, student_logits: Tensor, teacher_logits: Tensor, *, progress: float | Tensor, stacked: bool
) -> Signals:
    """What a step sees of a batch: its samples along one axis, the tokens of all its sequences.

    Args:
        batch: Of one student, or of several side by side.
        student_logits: `[B, ..., C]` or `[S, B, ..., C]`.
        teacher_logits: Likewise.
        progress: How much of the run is done, 0..1.
        stacked: Whether the first axis counts students.
    """
    first = int(stacked)
    student, teacher = (logits.flatten(first, -2) for logits in (student_logits, teacher_logits))
    labels, mask = (None if one is None else one.flatten(first) for one in (batch.labels, batch.mask))
    return Signals(student, teacher, labels, progress, mask, stacked)


def _side_by_side(values: Sequence[Inputs]) -> Inputs:
    """What every student has, along a new first axis; None where they have nothing."""
    return mapped(lambda *tensors: torch.stack(tensors), values[0], *values[1:])
