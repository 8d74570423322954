"""A data set for object detection that needs no download: rendered shapes on a noisy background, with exact boxes.

Every picture holds up to `MOST` shapes of the classes in `SHAPES`. Sizes, colours and small rotations vary, and shapes
may cover each other. A box is the tightest one around all pixels of its shape, the hidden ones too, so it is exact.
Targets are as torchvision's detectors take them: class 0 is the background. A new shape is one function of coordinates
and one entry in `SHAPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive

Coordinates = NDArray[np.float64]
Mask = NDArray[np.bool_]
Target = dict[str, Tensor]

MOST = 4
"""Shapes in one picture, at most; the least is none."""
RADII = (4.5, 11.0)
"""From a shape's middle to its furthest pixels, in pixels."""
TILT = 0.25
"""Largest rotation to either side, in radians: a square never looks like a diamond."""
VISIBLE = 0.7
"""Least fraction of a shape that others leave uncovered."""
CONTRAST = 50.0
"""Least distance of a shape's colour from the background's, of 255."""
NOISE = 22.0
"""Standard deviation of the noise on every channel of a pixel, of 255."""


def _polygon(corners: int) -> Callable[[Coordinates, Coordinates], Mask]:
    def inside(x: Coordinates, y: Coordinates) -> Mask:
        wedge = 2 * np.pi / corners
        angle = np.mod(np.arctan2(x, -y) + wedge / 2, wedge) - wedge / 2
        return np.asarray(np.hypot(x, y) * np.cos(angle) <= np.cos(wedge / 2))

    # A corner points up: the angle is measured from a corner, so the edge lies half a wedge away from it.
    return lambda x, y: inside(*_turned(x, y, np.pi / corners))


def _turned(x: Coordinates, y: Coordinates, angle: float) -> tuple[Coordinates, Coordinates]:
    return x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)


def _star(x: Coordinates, y: Coordinates) -> Mask:
    return np.asarray(np.hypot(x, y) <= 0.4 + 0.6 * np.abs(np.cos(2.5 * np.arctan2(x, -y))) ** 2)


SHAPES: dict[str, Callable[[Coordinates, Coordinates], Mask]] = {
    "circle": lambda x, y: np.asarray(np.hypot(x, y) <= 0.95),
    "square": lambda x, y: np.asarray(np.maximum(np.abs(x), np.abs(y)) <= 0.8),
    "triangle": _polygon(3),
    "diamond": _polygon(4),
    "hexagon": _polygon(6),
    "cross": lambda x, y: np.asarray((np.minimum(np.abs(x), np.abs(y)) <= 0.3) & (np.abs(x) + np.abs(y) <= 1.3)),
    "ring": lambda x, y: np.asarray((np.hypot(x, y) <= 1.0) & (np.hypot(x, y) >= 0.5)),
    "star": _star,
}
"""Whether points are inside, in units of the radius around the middle, y downwards. Label i + 1 is the i-th."""

NUM_CLASSES = len(SHAPES) + 1
"""With the background, as torchvision counts."""


@dataclass(frozen=True)
class Scenes:
    """Pictures with their boxes.

    Args:
        images: `[N, 3, S, S]`, uint8.
        targets: For each picture `boxes`, `[K, 4]` float32 as x0, y0, x1, y1 in pixels (the right and lower edges
            exclusive: x1 - x0 is the width), and `labels`, `[K]` int64 in 1..len(SHAPES); K may be 0.
    """

    images: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, places: Tensor) -> tuple[list[Tensor], list[Target]]:
        """The pictures at `places` as a detector takes them: float32 `[3, S, S]` in 0..1, and their targets."""
        return list(self.images[places].float().div(255)), [self.targets[place] for place in places.tolist()]


def scenes(count: int, seed: int, size: int = 64) -> Scenes:
    """Render a data set; the same arguments give the same pictures.

    Args:
        count: Pictures.
        seed: Of everything that is drawn; another seed gives other pictures.
        size: Width and height, in pixels; 48 or more, so that `MOST` shapes have room.

    Returns:
        Pictures with 0 to `MOST` shapes, all numbers of shapes equally often and all classes equally often (to one).

    Raises:
        BadInputError: Where `count` or `size` are too small.
    """
    positive(count, "scenes", "count")
    if size < 48:
        raise BadInputError(f"scenes need pictures of 48 pixels or more for {MOST} shapes; got size {size}")
    random = np.random.default_rng(seed)
    numbers = random.permutation(np.arange(count) % (MOST + 1))
    labels = random.permutation(np.arange(numbers.sum()) % len(SHAPES)) + 1
    pictures, targets = [], []
    for inside in np.split(labels, np.cumsum(numbers)[:-1]):
        picture, masks = scene(inside, random, size)
        pictures.append(torch.from_numpy(picture).permute(2, 0, 1))
        boxes = torch.tensor([box(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)
        targets.append({"boxes": boxes, "labels": torch.from_numpy(inside.astype(np.int64))})
    return Scenes(torch.stack(pictures), targets)


def scene(labels: NDArray[np.int64], random: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], list[Mask]]:
    """Render one picture with a shape for each label, later ones in front.

    Returns:
        `[size, size, 3]` uint8, and of each shape the pixels that it would cover alone, `[size, size]`.
    """
    names, masks = list(SHAPES), [np.zeros((size, size), np.bool_)] * len(labels)
    while True:  # seldom more than twice
        masks = [_placed(names[label - 1], random, size) for label in labels]
        if all(_seen(place, masks) >= VISIBLE for place in range(len(masks))):
            break
    base = random.uniform(40, 215, 3)
    slope = random.uniform(-0.6, 0.6, (2, 3)) * 64 / size  # the background's colour changes over the picture
    rows, columns = np.mgrid[:size, :size] - size / 2
    picture = base + rows[..., None] * slope[0] + columns[..., None] * slope[1]
    for mask in masks:
        picture[mask] = _colour(base, random)
    picture += random.normal(0.0, NOISE, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), masks


def box(mask: Mask) -> tuple[int, int, int, int]:
    """The tightest box around a mask's pixels: x0, y0, x1, y1, the last two exclusive.

    >>> box(np.array([[False, False, False], [False, True, True]]))
    (1, 1, 3, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _placed(name: str, random: np.random.Generator, size: int) -> Mask:
    radius = random.uniform(*RADII)
    x, y = random.uniform(radius, size - radius, 2)
    rows, columns = np.mgrid[:size, :size] + 0.5
    turned = _turned((columns - x) / radius, (rows - y) / radius, random.uniform(-TILT, TILT))
    return SHAPES[name](*turned)


def _seen(place: int, masks: list[Mask]) -> float:
    front = np.zeros_like(masks[0])
    for mask in masks[place + 1 :]:
        front |= mask
    return float((masks[place] & ~front).sum() / masks[place].sum())


def _colour(background: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    while True:
        colour = random.uniform(0, 255, 3)
        if np.abs(colour - background).max() >= CONTRAST:
            return np.asarray(colour)
