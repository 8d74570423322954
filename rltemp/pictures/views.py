"""What a network sees of a picture file: the same each time, or changed at random for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.optional_imports import import_library
from rltemp.pictures.decoding import check_size, decoded
from rltemp.pictures.settings import Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

SHIFT_SHARE = 8
"""A shift is up to this part of the shorter side: 4 of CIFAR's 32 pixels, as the field has it, and 1 of 14."""


def still(path: str, pictures: Pictures) -> Tensor:
    """The picture resized and cut from the middle, `[3, H, W]`, uint8.

    Raises:
        BadInputError: Where the file cannot be read, or would be too large.
    """
    return _as_tensor(_cut(decoded(path), path, pictures))


def changed(path: str, pictures: Pictures, seed: int) -> Tensor:
    """The picture as one training step sees it, `[3, H, W]`, uint8: `seed` draws all that is random.

    Raises:
        BadInputError: As `still`.
    """
    v2 = _transforms()
    image = decoded(path)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchvision draws from no other
        if "crop" in pictures.parts:
            image = v2.RandomResizedCrop(pictures.image_size, antialias=True)(image)
        else:
            image = _cut(image, path, pictures)
        if "shift" in pictures.parts:
            image = v2.RandomCrop(image.size[::-1], padding=max_shift(*image.size))(image)
        for part, transform in {"mirror": v2.RandomHorizontalFlip, "randaugment": v2.RandAugment}.items():
            image = transform()(image) if part in pictures.parts else image
    return _as_tensor(image)


def max_shift(height: int, width: int) -> int:
    """How far `shift` moves a picture at most, in pixels.

    >>> max_shift(32, 32), max_shift(14, 20), max_shift(7, 7)
    (4, 1, 0)
    """
    return min(height, width) // SHIFT_SHARE


def _cut(image: Image, path: str, pictures: Pictures) -> Image:
    if pictures.image_size is None:
        return image
    functional, short = _transforms().functional, pictures.resize or pictures.image_size
    factor = short / min(image.size)
    try:
        check_size(*(round(side * factor) for side in image.size))
    except ValueError as error:
        raise BadInputError(f"cannot resize the image {path} to {short} pixels: {error}. Remove it") from error
    resized: Image = functional.center_crop(functional.resize(image, [short], antialias=True), [pictures.image_size])
    return resized


def _as_tensor(image: Image) -> Tensor:
    pixels: Tensor = _transforms().functional.pil_to_tensor(image)
    return pixels


def _transforms() -> Any:
    return import_library("torchvision.transforms.v2", "task 'imagefolder'")
