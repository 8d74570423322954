"""What a task says of its pictures: their size, what training changes in them at random, how they are normalised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import whole
from rltemp.kd.names import lookup

PARTS = ("shift", "mirror", "crop", "randaugment")
"""What `--augment` is made of; see `Pictures`."""
LARGEST = 4096
"""Pixels a side that may be asked for."""
NORMALISATIONS = {"imagenet": "0.485,0.456,0.406/0.229,0.224,0.225", "half": "0.5/0.5"}
"""Mean and standard deviation of each channel, of pixels in 0..1: those of torchvision's weights, and -1..1."""


@dataclass(frozen=True)
class Pictures:
    """How pictures reach a network; None is what the task has.

    Args:
        image_size: Side of the square that a network sees, 1 to 4096; None: pictures stay as they are.
        resize: The shorter side before that square is cut from the middle, `image_size` or more; by default the same.
        augment: What training changes at random: `none`, or parts joined by `+`. `shift`: by up to an eighth of the
            shorter side, zeros fill in; `mirror`: left to right, half of the time; `crop`: a rectangle of 8 to 100 % of
            the picture, resized to `image_size`; `randaugment`: two of RandAugment's changes.
        normalise: `data` (of the training pictures), `imagenet`, `half`, `teacher` (as beside its weights), or
            mean/deviation of pixels in 0..1, as in 0.5,0.5,0.5/0.25,0.25,0.25.

    Raises:
        BadInputError: For a value that cannot be.

    >>> Pictures(image_size=224, augment="crop+mirror").parts
    ('crop', 'mirror')
    """

    image_size: int | None = None
    resize: int | None = None
    augment: str | None = None
    normalise: str | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):
            if (value := getattr(self, name)) is not None:
                whole(value, 1, "pictures", name)
                if value > LARGEST:
                    raise BadInputError(f"pictures: {name} must be 1 to {LARGEST}; got {value}")
        if self.resize is not None and self.resize < (self.image_size or LARGEST + 1):
            raise BadInputError(
                f"pictures: resize {self.resize} needs an image_size of at most as much; got {self.image_size}"
            )
        if "crop" in self.parts and ("shift" in self.parts or self.image_size is None):
            raise BadInputError(f"pictures: crop needs an image_size, and no shift; got augment {self.augment}")
        if self.normalise not in (None, "data", "teacher"):
            _mean_and_std(self.normalise)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of `augment`; none where it is `none` or None.

        Raises:
            BadInputError: For a part that nobody knows, or one that is there twice.
        """
        if self.augment in (None, "none"):
            return ()
        found = tuple(self.augment.split("+"))
        for part in found:
            lookup(dict.fromkeys(("none", *PARTS)), part, "augmentation")
        if "none" in found or len(set(found)) < len(found):
            raise BadInputError(f"pictures: augment is none, or different parts joined by +; got {self.augment}")
        return found

    @property
    def scale(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of each channel, in the units of uint8; None where data or teacher have to tell."""
        return None if self.normalise in (None, "data", "teacher") else _mean_and_std(self.normalise)


AS_THEY_ARE = Pictures()
"""As every task has them by itself."""


def _mean_and_std(text: str) -> tuple[Tensor, Tensor]:
    """Read `0.5,0.5,0.5/0.2,0.2,0.2`, or a name of `NORMALISATIONS`, in the units of uint8.

    Raises:
        BadInputError: Where it is neither, or a deviation is not above 0.
    """
    mean, _, std = NORMALISATIONS.get(text, text).partition("/")
    try:
        found = [[float(value) for value in one.split(",")] for one in (mean, std)]
    except ValueError:
        found = [[], []]
    sound = len(found[0]) == len(found[1]) > 0 and all(map(math.isfinite, found[0] + found[1]))
    if not sound or min(found[1]) <= 0:
        raise BadInputError(
            f"pictures: normalise is data, teacher, {', '.join(NORMALISATIONS)}, or mean/deviation of each channel for "
            f"pixels in 0..1, as in 0.5,0.5,0.5/0.25,0.25,0.25; got {text!r:.80}"
        )
    return 255 * torch.tensor(found[0]), 255 * torch.tensor(found[1])
