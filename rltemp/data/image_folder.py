"""A folder of images as a data set, one folder to a class: decoded once into memory, or read batch by batch."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rltemp.data.dataset import Dataset, Split
from rltemp.data.item_reader import PictureReader
from rltemp.data.splits import split_pool
from rltemp.errors import BadInputError
from rltemp.io.progress import Bar
from rltemp.optional_imports import import_library
from rltemp.pictures.decoding import opened
from rltemp.pictures.folders import Listed, class_names, listed, warn_of_copies
from rltemp.pictures.settings import AS_THEY_ARE, Pictures
from rltemp.pictures.views import still

log = logging.getLogger(__name__)

MOST_BYTES = 2**30
"""Of decoded pictures that are kept in memory where they can be read batch by batch: their size is given."""
TEST_FOLDERS = ("test", "val", "validation")
LAYOUT = "PATH/train/<class>/* and PATH/test/<class>/* (or val)"
DEFAULT_AUGMENT = "shift+mirror"


def image_folder(
    option: str, split_seed: int, root: Path | None, pictures: Pictures = AS_THEY_ARE, workers: int = 0
) -> Dataset:
    """Load `PATH/train/<class>/*` and `PATH/test/<class>/*` as RGB of one size.

    Where there is no `test`, `val` or `validation` is the test split; beside a `test` it is the validation split, and
    only the probe split is cut from the training pictures.

    Raises:
        BadInputError: Where the folder cannot be used.
    """
    import_library("torchvision.datasets", "task 'imagefolder'")
    if not option:
        raise BadInputError("task 'imagefolder' needs a folder, as in imagefolder:PATH")
    folders = _folders(Path(option).expanduser())
    found = {part: listed(folder) for part, folder in folders.items()}
    train = found["train"]
    for part in found.keys() - {"train"}:
        _check_classes(folders[part], found[part].classes, train.classes)
        warn_of_copies(train.files, found[part].files, part)
    counts, needed = np.bincount(train.labels), 5 - len(found)
    if len(counts) < 2 or counts.min() < needed:
        raise BadInputError(
            f"{folders['train']}: needed are 2 classes or more with {needed} images or more (one each for what is cut "
            f"from train); got {len(counts)} classes, and {train.classes[counts.argmin()]!r} has only {counts.min()} "
            "images"
        )
    pictures = replace(pictures, augment=pictures.augment or DEFAULT_AUGMENT)
    with warnings.catch_warnings():  # Pillow's, about sizes that are refused here
        warnings.simplefilter("ignore")
        splits = _splits(found, pictures, workers)
    own = (splits["test"], len(counts), split_seed)
    return split_pool(f"imagefolder:{option}", splits["train"], *own, splits.get("validation"), pictures)


def _folders(folder: Path) -> dict[str, Path]:
    """The folders of the splits that are there: `train`, `test`, and `validation` beside a `test`."""
    for needed in (folder, folder / "train"):
        if not needed.is_dir():
            raise BadInputError(f"no folder {needed}; needed: {LAYOUT}")
    there = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not there:
        raise BadInputError(f"no folder {folder / 'test'}; needed: {LAYOUT}")
    others = [one for one in there if class_names(one)] or there
    if len(others) < len(there):  # as ImageNet's own test pictures, whose classes are kept secret
        log.warning(f"{sorted(set(there) - set(others))[0]} is left out: it holds no folder of a class.")
    if others[0].name != "test":
        log.info(f"There is no {folder / 'test'}: {others[0]} is the test split, and validation is cut from train.")
    return dict(zip(("train", "test", "validation"), (folder / "train", *others), strict=False))


def _check_classes(folder: Path, found: list[str], train: list[str]) -> None:
    if found != train:
        only = sorted(set(train) - set(found))[:5], sorted(set(found) - set(train))[:5]
        raise BadInputError(
            f"{folder.parent}: train/ and {folder.name}/ must have folders of the same names; only in train/: "
            f"{only[0]}, only in {folder.name}/: {only[1]}"
        )


def _splits(found: dict[str, Listed], pictures: Pictures, workers: int) -> dict[str, Split]:
    """Every split: in memory where all fit there and no picture is cropped; else read from its files."""
    shape = tuple(still(found["train"].files[0], pictures).shape)
    size = sum(len(split.files) for split in found.values()) * math.prod(shape)
    if pictures.image_size is not None and ("crop" in pictures.parts or size > MOST_BYTES):
        _check_headers([file for split in found.values() for file in split.files])
        labels = {part: torch.tensor(split.labels) for part, split in found.items()}
        return {part: Split(PictureReader.of(found[part].files, pictures, workers), labels[part]) for part in found}
    if size > (memory := _memory_bytes()):
        raise BadInputError(
            f"images as large as {found['train'].files[0]} take {size:,} bytes; this machine has {memory:,}. Give "
            "--image-size: they are then read from their files batch by batch"
        )
    return {part: _decode(split, shape, pictures) for part, split in found.items()}


def _check_headers(files: Sequence[str]) -> None:
    """Refuse what is no picture by its first bytes before anything is trained; it takes a minute for ImageNet."""
    with Bar("checking images") as bar:
        for count, file in enumerate(files, start=1):
            with opened(file):
                pass
            bar(count, len(files))


def _decode(split: Listed, shape: tuple[int, ...], pictures: Pictures) -> Split:
    files = split.files
    images = np.empty((len(files), *shape), np.uint8)

    def decode(position: int) -> None:
        try:
            images[position] = _read(files[position], pictures, shape)
        except BadInputError as error:
            raise BadInputError(f"image {position} of {len(files)}: {error}") from error

    # Threads suffice: Pillow gives up the interpreter's lock while it decodes. No process can die or hang unnoticed.
    with ThreadPoolExecutor(torch.get_num_threads()) as workers:  # as many as --threads says
        done = workers.map(decode, range(len(files)))
        try:
            with Bar("decoding images") as bar:
                for count, _ in enumerate(done, start=1):
                    bar(count, len(files))
        except BadInputError:
            workers.shutdown(cancel_futures=True)  # the rest need not be decoded first
            raise
    return Split(torch.from_numpy(images), torch.tensor(split.labels))


def _memory_bytes() -> int:
    """Of this machine; 64 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**36


def _read(path: str, pictures: Pictures, expected: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One picture of the size that all have, `[3, H, W]`."""
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = still(path, pictures).numpy()
    if pixels.shape != expected:
        found, needed = (f"{shape[2]} x {shape[1]}" for shape in (pixels.shape, expected))
        raise BadInputError(
            f"{path} has {found} pixels, the first training image {needed}. Give --image-size, or resize them first"
        )
    return pixels
