"""A folder of images as a data set, one folder to a class, decoded once into memory; files may be a stranger's."""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rltemp.data.dataset import Dataset, Split
from rltemp.data.splits import split_pool
from rltemp.errors import BadInputError
from rltemp.optional_imports import import_library

MAX_PIXELS = 4096 * 4096
"""Of one image in a folder."""
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What torchvision lists by its suffix. Pillow goes by content and knows more, one of which starts a program (EPS)."""


def image_folder(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load `PATH/train/<class>/*` and `PATH/test/<class>/*`, decoded once into memory as RGB of one size."""
    if not option:
        raise BadInputError("task 'imagefolder' needs a folder, as in imagefolder:PATH")
    folder = Path(option).expanduser()
    train, test = _scan(folder, "train"), _scan(folder, "test")
    if train.classes != test.classes:
        classes = set(train.classes), set(test.classes)
        only = sorted(classes[0] - classes[1])[:5], sorted(classes[1] - classes[0])[:5]
        raise BadInputError(
            f"{folder}: train/ and test/ must have folders of the same names; only in train/: {only[0]}, "
            f"only in test/: {only[1]}"
        )
    counts = np.bincount(train.targets)
    if len(counts) < 2 or counts.min() < 3:
        raise BadInputError(
            f"{folder / 'train'}: needed are 2 classes or more with 3 images or more (one each for "
            f"train, probe and validation); got {len(counts)} classes, and "
            f"{train.classes[counts.argmin()]!r} has only {counts.min()} images"
        )
    with warnings.catch_warnings():  # Pillow's, about sizes that are refused here
        warnings.simplefilter("ignore")
        size = _read(train.samples[0][0]).shape
        pool, held_out = _decode(train.samples, size), _decode(test.samples, size)
    return split_pool(f"imagefolder:{option}", pool, held_out, len(counts), split_seed)


def _scan(folder: Path, split: str) -> Any:
    """List the images of one split, as torchvision's `ImageFolder` does; nothing is decoded."""
    datasets = import_library("torchvision.datasets", "task 'imagefolder'")
    for needed in (folder, folder / split):
        if not needed.is_dir():
            raise BadInputError(f"no folder {needed}; needed: PATH/train/<class>/* and PATH/test/<class>/*")
    _refuse_loops(folder / split)
    try:
        return datasets.ImageFolder(folder / split)
    except OSError as error:
        raise BadInputError(f"{folder / split} cannot be used as a folder of images: {error}") from error


def _refuse_loops(folder: Path) -> None:
    """Refuse links that lead round: torchvision follows them, and two of them lead to ever more folders."""
    seen: set[str] = set()
    for place, _, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise BadInputError(f"{place} leads to a folder that is there already ({real}). Remove the link")
        seen.add(real)


def _decode(samples: list[tuple[str, int]], shape: tuple[int, ...]) -> Split:
    size, memory = len(samples) * math.prod(shape), _memory_bytes()
    if size > memory:
        raise BadInputError(
            f"{len(samples)} images as large as {samples[0][0]} take {size:,} bytes; this machine has {memory:,}. "
            "Resize them first"
        )
    images = np.empty((len(samples), *shape), np.uint8)

    def decode(position: int) -> None:
        try:
            images[position] = _read(samples[position][0], shape)
        except BadInputError as error:
            raise BadInputError(f"image {position} of {len(samples)}: {error}") from error

    # Threads suffice: Pillow gives up the interpreter's lock while it decodes. No process can die or hang unnoticed.
    with ThreadPoolExecutor(torch.get_num_threads()) as workers:  # as many as --threads says
        done = workers.map(decode, range(len(samples)))
        try:
            for _ in tqdm(done, "decoding images", len(samples), leave=False, disable=None):
                pass
        except BadInputError:
            workers.shutdown(cancel_futures=True)  # the rest need not be decoded first
            raise
    return Split(torch.from_numpy(images), torch.tensor([label for _, label in samples]))


def _memory_bytes() -> int:
    """Of this machine; 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**36


def _read(path: str, expected: tuple[int, ...] | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one file to `[3, H, W]`, RGB."""
    pillow = import_library("PIL.Image", "task 'imagefolder'")
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    try:
        if not Path(path).is_file():  # a pipe would wait for its writer
            raise ValueError("it is no regular file")
        with pillow.open(path, formats=IMAGE_FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise ValueError(f"it claims {image.size[0]:,} x {image.size[1]:,} pixels; allowed: {MAX_PIXELS:,}")
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise BadInputError(f"cannot read the image {path}: {error}. Replace or remove it") from error
    if expected is not None and pixels.shape != expected:
        found, needed = (f"{shape[2]} x {shape[1]}" for shape in (pixels.shape, expected))
        raise BadInputError(
            f"{path} has {found} pixels, the first training image {needed}. Resize all to one size first"
        )
    return pixels
