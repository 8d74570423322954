"""A data set in memory, and the batches that are drawn from it.

`train` teaches the student; rewards are measured on `probe`; choices are made on `validation`; `test` is for
reported numbers alone. Where data sets come from is `rltemp.data.sources`, and `rltemp.data.own` for a user's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rltemp.data.item_reader import ItemReader, PictureReader
from rltemp.errors import BadInputError
from rltemp.models.nested import Inputs, joined, mapped, rows, taken, tensors
from rltemp.pictures.augmentation import augmented

READ = 256
"""Items of a reader that stand for all of them where its content is compared."""


class Batch(NamedTuple):
    """Some samples of a split, `...` of them.

    Args:
        inputs: Of a network, `[..., *]` of every tensor.
        labels: `[...]`, or `[..., T]` of tokens; None where there are none.
        mask: As the labels, False where there is no sample; None: all are.
    """

    inputs: Inputs
    labels: Tensor | None
    mask: Tensor | None


MOST_READY = 2**24
"""Numbers of a split that are normalised once for a run, 64 MiB, and not batch by batch: a third of a small step."""
MOST_AT_ONCE = 2**22
"""Numbers of pictures that a network answers at once where nothing is learned, 27 pictures of 224 pixels."""


@dataclass(frozen=True)
class Split:
    """Inputs with their labels.

    Args:
        inputs: `[N, ...]` of every tensor: pictures `[N, C, H, W]` uint8, tables, tokens; or a reader of them.
        labels: `[N]`, or `[N, T]` of tokens, int64; None where the data have none.
        mask: As the labels, bool, False where there is no sample (padding); None: all are.

    Raises:
        BadInputError: Where the shapes disagree.
    """

    inputs: Inputs
    labels: Tensor | None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in tensors(self.inputs)} if not self.reads else {len(self.inputs)}
        if len(sizes) != 1 or (self.labels is not None and sizes != {len(self.labels)}):
            shapes = [tuple(tensor.shape) for tensor in tensors(self.inputs)]
            labels = None if self.labels is None else tuple(self.labels.shape)
            raise BadInputError(f"needed: inputs [N, ...] and labels [N, ...]; got shapes {shapes} and {labels}")
        if self.mask is not None and (self.labels is None or self.mask.shape != self.labels.shape):
            raise BadInputError(f"a mask needs labels of its shape; got {tuple(self.mask.shape)}")

    def __len__(self) -> int:
        return len(self.inputs) if self.reads else len(next(tensors(self.inputs)))

    @property
    def reads(self) -> bool:
        """Whether inputs are read from a data set when they are needed."""
        return isinstance(self.inputs, ItemReader)

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.inputs.device if self.reads else next(tensors(self.inputs)).device

    @property
    def tokens(self) -> bool:
        """Whether a sample is a token of a sequence: labels have two axes or more."""
        return self.labels is not None and self.labels.dim() > 1

    @property
    def targets(self) -> Tensor:
        """The labels of all samples that the mask leaves, `[K]`.

        Raises:
            BadInputError: Where the data have no labels.
        """
        return self.kept(self.known_labels)

    @property
    def known_labels(self) -> Tensor:
        """The labels.

        Raises:
            BadInputError: Where the data have none.
        """
        if self.labels is None:
            raise BadInputError("these data have no labels")
        return self.labels

    def kept(self, values: Tensor, dims: int = 0) -> Tensor:
        """The values of all samples that the mask leaves, `[K, *]`.

        Args:
            values: `[*, N, ...]`: one entry for each label, and what follows.
            dims: Axes before the samples' own.
        """
        axes = 1 if self.labels is None else self.labels.dim()
        flat = values.flatten(dims, dims + axes - 1)
        return flat if self.mask is None else flat[(slice(None),) * dims + (self.mask.flatten(),)]

    def to(self, device: torch.device | str) -> Split:
        """The same samples on `device`."""
        inputs = self.inputs.to(device) if self.reads else mapped(lambda tensor: tensor.to(device), self.inputs)
        labels, mask = (None if one is None else one.to(device) for one in (self.labels, self.mask))
        return Split(inputs, labels, mask)

    def take(self, index: Tensor) -> Split:
        """The samples at positions `[M]`."""
        inputs = self.inputs.take(index) if self.reads else rows(self.inputs, index)
        return Split(inputs, *self.marks(index))

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The samples at positions of any shape; `generator` draws what a reader's data set draws."""
        inputs = self.inputs.read(index, generator) if self.reads else rows(self.inputs, index)
        return Batch(inputs, *self.marks(index))

    def and_then(self, other: Split) -> Split:
        """The samples of this split and then those of another one of the same kind."""
        inputs = self.inputs.and_then(other.inputs) if self.reads else joined(self.inputs, other.inputs)
        labels = None if self.labels is None else torch.cat([self.labels, other.known_labels])
        if labels is None or (self.mask is None and other.mask is None):
            return Split(inputs, labels)
        masks = [
            torch.ones_like(one.known_labels, dtype=torch.bool) if one.mask is None else one.mask
            for one in (self, other)
        ]
        return Split(inputs, labels, torch.cat(masks))

    def content(self) -> Iterator[Tensor]:
        """What the split holds, tensor by tensor; of a reader, the first of its items."""
        yield from tensors(self.inputs.read(torch.arange(min(READ, len(self)))) if self.reads else self.inputs)
        yield from (one for one in (self.labels, self.mask) if one is not None)

    def sha256(self) -> str:
        """Of its content."""
        digest = hashlib.sha256()
        for tensor in self.content():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def marks(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Labels and mask of the samples at positions of any shape."""
        labels, mask = (None if one is None else taken(one, index.to(one.device)) for one in (self.labels, self.mask))
        return labels, mask


@dataclass(frozen=True)
class Dataset:
    """Four disjoint splits of one data set, and how they become a network's input.

    Args:
        name: As asked for, with its option.
        train: What students learn from.
        probe: What rewards are measured on.
        validation: What temperatures, rules and checkpoints are chosen on.
        test: What results are reported on.
        num_classes: C; 0 where the networks have to tell.
        mean: `[channels]` of pictures, of the training split, in the units of its inputs; None: they stay as they are.
        std: `[channels]`, likewise; above 0.
        augment: Whether training pictures are changed at random.
        cut_at: Positions, in the training data that were given, of every split that was cut from them, by its name.
        augmentation: How they are changed: parts of `Pictures.augment`.
    """

    name: str
    train: Split
    probe: Split
    validation: Split
    test: Split
    num_classes: int
    mean: Tensor | None
    std: Tensor | None
    augment: bool
    cut_at: Mapping[str, Tensor] = field(default_factory=dict)
    augmentation: tuple[str, ...] = ("shift", "mirror")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one input, `(channels, height, width)` of a picture.

        Raises:
            BadInputError: Where an input is no single tensor: networks by name take none of those.
        """
        first = torch.zeros(1, dtype=torch.long)
        inputs = self.train.inputs.read(first) if self.train.reads else self.train.inputs
        if not isinstance(inputs, Tensor):
            raise BadInputError(f"task {self.name}: its inputs are no single tensor; give a network of your own")
        return tuple(inputs.shape[1:])

    @property
    def views_change(self) -> bool:
        """Whether a sample looks otherwise every time it is drawn."""
        return self.augment or (self.train.reads and self.train.inputs.draws)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on `device`."""
        names = ("train", "probe", "validation", "test", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})

    def normalise(self, images: Tensor, room: Tensor | None = None) -> Tensor:
        """Images `[..., C, H, W]` as float32 with mean 0 and deviation 1 per channel, in `room` if that is given."""
        if self.mean is None or self.std is None:
            return images
        fresh = images.to(torch.float32, copy=True) if room is None else room.copy_(images)
        # To go on in place takes half the time of two more results.
        return fresh.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])

    def ready(self, split: Split) -> Split | None:
        """The split with all inputs as a network takes them; None where they would fill too much memory, or change."""
        if self.views_change or split.reads:
            return None
        if self.mean is None:
            return split
        fits = split.inputs.numel() <= MOST_READY
        return Split(self.normalise(split.inputs), split.labels, split.mask) if fits else None

    def in_order(self, split: Split, batch_size: int) -> Iterator[Inputs]:
        """All inputs of a split as a network takes them, batch by batch; batches of large pictures are smaller.

        What is read from files is there until the next batch is asked for.
        """
        shape = self.image_shape if self.mean is not None else ()
        size = min(batch_size, max(1, MOST_AT_ONCE // math.prod(shape)))
        index = torch.split(torch.arange(len(split), device=split.device), size)
        if isinstance(split.inputs, PictureReader):
            # In one place: glibc does not fill the holes that such batches leave, 0.5 GiB in 1,000 pictures.
            room = torch.empty(size, *shape, device=split.device)
            for images in split.inputs.ahead(map(split.inputs.request, index)):
                yield self.normalise(images, room[: len(images)])
        else:
            yield from (self.batch(split, one).inputs for one in index)

    def batch(self, split: Split, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Gather samples of `split`, whose inputs a network can take.

        Args:
            split: One of the four, or any other of the same kind.
            index: Positions in `split`, of any shape: `[B]`, or `[S, B]` for a stack of students.
            generator: On the CPU; it draws the augmentation. None leaves pictures as they are.
        """
        found = split.batch(index, generator)
        if self.mean is None:
            return found
        images = found.inputs
        if self.augment and generator is not None and not split.reads:  # a reader has changed them
            images = augmented(images.flatten(0, -4), generator, self.augmentation).view_as(images)
        return found._replace(inputs=self.normalise(images))
