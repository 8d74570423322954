"""Where data sets come from: scikit-learn, torchvision, a folder of images, a formula, a text; `DATASETS` names them.

To add one, write a function `(option, split_seed, root) -> Dataset`, where `option` is what follows the colon
in `name:option`, and give it a line in `DATASETS`, and in `TAKE_AN_OPTION` where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rltemp.data.characters import characters
from rltemp.data.dataset import Dataset, Split
from rltemp.data.image_folder import image_folder
from rltemp.data.splits import adjusted, cut, rows_as_images, split_by_class, split_pool
from rltemp.data.toy import NUM_CLASSES, toy_parts
from rltemp.errors import BadInputError
from rltemp.kd.checks import fraction, positive
from rltemp.kd.names import call_with_options, lookup, split_spec
from rltemp.models.random_numbers import random_stream
from rltemp.optional_imports import import_library
from rltemp.pictures.settings import AS_THEY_ARE, Pictures

DatasetBuilder = Callable[[str, int, Path | None], Dataset]
TABLE_SHARES = (0.15, 0.15, 0.2)
"""Of a table: probe, validation, test; the rest is for training."""


def load_dataset(
    spec: str, split_seed: int = 0, root: Path | None = None, pictures: Pictures = AS_THEY_ARE, workers: int = 0
) -> Dataset:
    """Load the data set that `spec` names, on the CPU.

    Args:
        spec: `digits`, `wine`, `breast_cancer`, `iris`, `synthetic`, `synthetic:classes=20,noise=0.1`, `toy`,
            `characters`, `cifar10`, `cifar100` or `imagefolder:PATH`.
        split_seed: Draws which samples are in which split, >= 0; CIFAR and folders come with a test split.
            `synthetic` and `toy` draw the samples themselves by it.
        root: Where downloads are kept; by default `$RLTEMP_DATA`, else `~/.cache/rltemp/data`.
        pictures: How pictures reach a network.
        workers: Processes that read pictures ahead, where they are read from files in the course of a run.

    Raises:
        BadInputError: Where the name is not known, or the data cannot be had or used.
    """
    name, option = split_spec(spec)
    builder = lookup(DATASETS, name, "task")
    if option and name not in TAKE_AN_OPTION:
        raise BadInputError(f"task {name!r} takes no option; got {option!r}")
    if builder is image_folder:
        return image_folder(option, split_seed, root, pictures, workers)
    return adjusted(builder(option, split_seed, root), pictures)


def digits(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels with values 0..16; needs no download."""
    bunch = import_library("sklearn.datasets", "task 'digits'").load_digits()
    images, labels = torch.from_numpy(bunch.images.astype(np.uint8)), torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=random_stream(split_seed, "split"))
    return cut("digits", Split(images[:, None], labels), order.tensor_split((1000, 1200, 1400)), 10)


def table(name: str, option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load a small table that comes with scikit-learn, by its `load_<name>`; needs no download.

    A row of F columns is an image `[F, 1, 1]`, float32, so that each column is standardised as a channel. Every class
    is split alike: about 15 % probe, 15 % validation, 20 % test, and half for training.
    """
    bundled = getattr(import_library("sklearn.datasets", f"task {name!r}"), f"load_{name}")
    samples = rows_as_images(*bundled(return_X_y=True))
    index = split_by_class(samples.targets, split_seed, TABLE_SHARES)
    return cut(name, samples, index, int(samples.targets.max()) + 1)


@dataclass(frozen=True)
class Synthetic:
    """What `synthetic:classes=20,noise=0.1` says.

    Args:
        classes: C, 2 to 100.
        features: F, the columns of a row, up to 1,000: half carry the class, a quarter are mixtures of those, and the
            rest is noise.
        noise: Share of labels that are drawn anew, 0 to 1, in every split (scikit-learn's `flip_y`).
        separation: Half the side of the cube at whose corners the classes lie, above 0 (`class_sep`).

    Raises:
        BadInputError: For a value out of range, or more classes than the features have room for.
    """

    classes: int = 10
    features: int = 32
    noise: float = 0.02
    separation: float = 1.0

    def __post_init__(self) -> None:
        for name, largest in (("classes", 100), ("features", 1000)):
            value = getattr(self, name)
            if type(value) is not int or not 2 <= value <= largest:
                raise BadInputError(f"synthetic: {name} must be a whole number, 2 to {largest}; got {value!r}")
        fraction(self.noise, "synthetic", "noise")
        positive(self.separation, "synthetic", "separation")
        if self.classes > 2 ** (self.features // 2):
            raise BadInputError(
                f"synthetic: {self.features} features have room for {2 ** (self.features // 2)} classes; "
                f"got {self.classes}. Give fewer classes or more features"
            )


def synthetic(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Draw 4,800 rows by scikit-learn's `make_classification`, with the options of `Synthetic`.

    A class is a normal cluster at a corner of a cube, with correlations of its own; another `split_seed` is another
    problem. A row is an image `[F, 1, 1]`, as in `table`: 2,000 for training, 400 probe, 400 validation, 2,000 test.
    """
    name = f"synthetic:{option}" if option else "synthetic"
    settings = call_with_options(Synthetic, option, name)
    seed = torch.randint(2**31, (), generator=random_stream(split_seed, "synthetic"))
    rows, labels = import_library("sklearn.datasets", "task 'synthetic'").make_classification(
        n_samples=4800,
        n_features=settings.features,
        n_informative=settings.features // 2,
        n_redundant=settings.features // 4,
        n_classes=settings.classes,
        n_clusters_per_class=1,
        flip_y=settings.noise,
        class_sep=settings.separation,
        random_state=int(seed),
    )
    index = torch.arange(4800).tensor_split((2000, 2400, 2800))  # the rows come shuffled
    return cut(name, rows_as_images(rows, labels), index, settings.classes)


def cifar(kind: str, option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load torchvision's `CIFAR10` or `CIFAR100`; downloaded once.

    Probe and validation are 2,500 images each of the official training split, equally many of each class.
    """
    name = kind.lower()
    source = getattr(import_library("torchvision.datasets", f"task {name!r}"), kind)
    folder = root or Path(os.environ.get("RLTEMP_DATA") or "~/.cache/rltemp/data").expanduser()
    try:
        official = [source(folder, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise BadInputError(
            f"task {name!r}: no usable copy in {folder}, and the download failed ({error}). Put "
            f"{source.filename} from {source.url} there, or name the folder that has it with RLTEMP_DATA"
        ) from error
    pool, test = (
        Split(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))
        for data in official
    )
    return split_pool(name, pool, test, len(official[0].classes), split_seed)


def toy(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Draw the task of `rltemp.data.toy`, whose best temperatures are known; its inputs are used as they are."""
    train, probe, validation, test = toy_parts(split_seed, (1000, 500, 500, 2000))
    mean, std = torch.zeros(train.inputs.shape[1]), torch.ones(train.inputs.shape[1])
    return Dataset("toy", train, probe, validation, test, NUM_CLASSES, mean, std, augment=False)


DATASETS: Mapping[str, DatasetBuilder] = {
    "digits": digits,
    "wine": partial(table, "wine"),
    "breast_cancer": partial(table, "breast_cancer"),
    "iris": partial(table, "iris"),
    "synthetic": synthetic,
    "toy": toy,
    "characters": characters,
    "cifar10": partial(cifar, "CIFAR10"),
    "cifar100": partial(cifar, "CIFAR100"),
    "imagefolder": image_folder,
}
TAKE_AN_OPTION = ("synthetic", "imagefolder")
