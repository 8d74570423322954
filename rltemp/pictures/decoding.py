"""One picture file, which may be a stranger's, as RGB of 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rltemp.errors import BadInputError
from rltemp.optional_imports import import_library

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 4096 * 4096
"""Of one picture."""
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "GIF", "AVIF")
"""Of those suffixes. Pillow goes by content and knows more, one of which starts a program (EPS)."""


def decoded(path: str) -> Image:
    """The picture in a file, turned as its EXIF data say, of an animation the first one.

    Raises:
        BadInputError: As `opened`, and where the file is damaged.
    """
    turned = import_library("PIL.ImageOps", "task 'imagefolder'").exif_transpose
    with opened(path) as image:
        picture = _eight_bits(image)
        turned(picture, in_place=True)
        picture.load()
        return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def opened(path: str) -> Iterator[Image]:
    """A picture of which the header has been read; errors within are said of its file, in one line.

    Raises:
        BadInputError: Where there is none, it is one pixel wide or high, too large, or of numbers whose range is not
            known.
    """
    pillow = import_library("PIL.Image", "task 'imagefolder'")
    pillow.init()
    formats = [name for name in FORMATS if name in pillow.OPEN]
    try:
        if not Path(path).is_file():  # a pipe would wait for its writer
            raise ValueError("it is no regular file")
        # An open file, not its name: Pillow 13 maps some files by their names, and reads TIFFs that are turned wrong.
        with open(path, "rb") as file, pillow.open(file, formats=formats) as image:
            check_size(*image.size)
            if min(image.size) < 2:
                raise ValueError(f"it has {image.size[0]} x {image.size[1]} pixels; needed: 2 x 2 or more")
            if image.mode in ("I", "F") and not _sixteen_bits(image):
                kind = "32-bit integers" if image.mode == "I" else "floats"
                raise ValueError(
                    f"it holds {kind} (mode {image.mode}), whose range is not known; save it with 8 or 16 bits"
                )
            yield image
    except Exception as error:  # a damaged file can make a decoder raise anything
        known = not isinstance(error, pillow.UnidentifiedImageError)
        reason = str(error) if known else f"its content is none of {', '.join(formats)}"
        raise BadInputError(f"cannot read the image {path}: {reason}. Replace or remove it") from error


def check_size(width: int, height: int) -> None:
    """Raise ValueError for a picture of too many pixels."""
    if math.prod((width, height)) > MAX_PIXELS:
        raise ValueError(f"it claims {width:,} x {height:,} pixels; allowed: {MAX_PIXELS:,}")


def _sixteen_bits(image: Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _eight_bits(image: Image) -> Image:
    """The picture with its 16 bits scaled to 8, which Pillow would cut off at 255."""
    if not _sixteen_bits(image):
        return image
    scaled: Image = import_library("PIL.Image", "task 'imagefolder'").fromarray(
        np.rint(np.asarray(image) / 257).astype(np.uint8)
    )
    scaled.getexif().update(image.getexif())
    return scaled
