"""Where data sets come from: scikit-learn, torchvision, a folder of images, a formula; `DATASETS` names them.

To add one, write a function `(option, split_seed, root) -> Dataset`, where `option` is what follows the colon
in `name:option`, and give it a line in `DATASETS`. torchvision and scikit-learn are imported where used.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rltemp.checks import fraction, positive
from rltemp.data import Dataset, Part, random_stream
from rltemp.errors import BadInputError
from rltemp.libraries import import_library
from rltemp.names import call_with_options, lookup, split_spec
from rltemp.toy import NUM_CLASSES, toy_parts

DatasetBuilder = Callable[[str, int, Path | None], Dataset]
POOL_SHARES = (0.05, 0.05)
"""Of a training pool: probe, validation; the rest is for training."""
MAX_PIXELS = 4096 * 4096
"""Of one image in a folder."""
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What torchvision lists by its suffix. Pillow goes by content and knows more, one of which starts a program (EPS)."""
TABLE_SHARES = (0.15, 0.15, 0.2)
"""Of a table: probe, validation, test; the rest is for training."""


def load_dataset(spec: str, split_seed: int = 0, root: Path | None = None) -> Dataset:
    """Load the data set that `spec` names, on the CPU.

    Args:
        spec: `digits`, `wine`, `breast_cancer`, `iris`, `synthetic`, `synthetic:classes=20,noise=0.1`, `toy`,
            `cifar10`, `cifar100` or `imagefolder:PATH`.
        split_seed: Draws which samples are in which part, >= 0; CIFAR and folders come with a test part.
            `synthetic` and `toy` draw the samples themselves by it.
        root: Where downloads are kept; by default `$RLTEMP_DATA`, else `~/.cache/rltemp/data`.

    Raises:
        BadInputError: Where the name is not known, or the data cannot be had or used.
    """
    name, option = split_spec(spec)
    return lookup(DATASETS, name, "task")(option, split_seed, root)


def digits(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels with values 0..16; needs no download."""
    _refuse_option("digits", option)
    bunch = import_library("sklearn.datasets", "task 'digits'").load_digits()
    everything = Part(
        torch.from_numpy(bunch.images.astype(np.uint8))[:, None],
        torch.from_numpy(bunch.target.astype(np.int64)),
    )
    order = torch.randperm(len(everything), generator=random_stream(split_seed, "split"))
    train, probe, validation, test = (_take(everything, index) for index in order.tensor_split((1000, 1200, 1400)))
    return Dataset("digits", train, probe, validation, test, 10, *_mean_and_std(train.images), augment=False)


def table(name: str, option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load a small table that comes with scikit-learn, by its `load_<name>`; needs no download.

    A row of F columns is an image `[F, 1, 1]`, float32, so that each column is standardised as a channel. Every class
    is split alike: about 15 % probe, 15 % validation, 20 % test, and half for training.
    """
    _refuse_option(name, option)
    bundled = getattr(import_library("sklearn.datasets", f"task {name!r}"), f"load_{name}")
    rows, labels = bundled(return_X_y=True)
    everything = _rows(rows, labels)
    index = _split_by_class(everything.labels, split_seed, TABLE_SHARES)
    probe, validation, test, train = (_take(everything, part) for part in index)
    mean_and_std = _column_mean_and_std(train.images)
    return Dataset(name, train, probe, validation, test, int(labels.max()) + 1, *mean_and_std, augment=False)


@dataclass(frozen=True)
class Synthetic:
    """What `synthetic:classes=20,noise=0.1` says.

    Args:
        classes: C, 2 to 100.
        features: F, the columns of a row, up to 1,000: half carry the class, a quarter are mixtures of those, and the
            rest is noise.
        noise: Share of labels that are drawn anew, 0 to 1, in every part (scikit-learn's `flip_y`).
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
    everything = _rows(rows, labels)
    # The rows come shuffled.
    index = torch.arange(4800).tensor_split((2000, 2400, 2800))
    train, probe, validation, test = (_take(everything, part) for part in index)
    mean_and_std = _column_mean_and_std(train.images)
    return Dataset(name, train, probe, validation, test, settings.classes, *mean_and_std, augment=False)


def cifar(kind: str, option: str, split_seed: int, root: Path | None) -> Dataset:
    """Load torchvision's `CIFAR10` or `CIFAR100`; downloaded once.

    Probe and validation are 2,500 images each of the official training part, equally many of each class.
    """
    name = kind.lower()
    _refuse_option(name, option)
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
        Part(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))
        for data in official
    )
    return split_pool(name, pool, test, len(official[0].classes), split_seed)


def toy(option: str, split_seed: int, root: Path | None) -> Dataset:
    """Draw the task of `rltemp.toy`, whose best temperatures are known; its inputs are used as they are."""
    _refuse_option("toy", option)
    train, probe, validation, test = toy_parts(split_seed, (1000, 500, 500, 2000))
    channels = train.images.shape[1]
    mean, std = torch.zeros(channels), torch.ones(channels)
    return Dataset("toy", train, probe, validation, test, NUM_CLASSES, mean, std, augment=False)


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


def split_pool(name: str, pool: Part, test: Part, num_classes: int, split_seed: int) -> Dataset:
    """Make a data set of pictures from a training pool, of which probe and validation get 5 % each.

    The shares are taken class by class, and are at least one sample; so a class needs 3 samples in the pool.
    """
    index = _split_by_class(pool.labels, split_seed, POOL_SHARES)
    probe, validation, train = (_take(pool, part) for part in index)
    mean_and_std = _mean_and_std(train.images)
    return Dataset(name, train, probe, validation, test, num_classes, *mean_and_std, augment=True)


def _scan(folder: Path, part: str) -> Any:
    """List the images of one part, as torchvision's `ImageFolder` does; nothing is decoded."""
    datasets = import_library("torchvision.datasets", "task 'imagefolder'")
    for needed in (folder, folder / part):
        if not needed.is_dir():
            raise BadInputError(f"no folder {needed}; needed: PATH/train/<class>/* and PATH/test/<class>/*")
    _refuse_loops(folder / part)
    try:
        return datasets.ImageFolder(folder / part)
    except OSError as error:
        raise BadInputError(f"{folder / part} cannot be used as a folder of images: {error}") from error


def _refuse_loops(folder: Path) -> None:
    """Refuse links that lead round: torchvision follows them, and two of them lead to ever more folders."""
    seen: set[str] = set()
    for place, _, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            raise BadInputError(f"{place} leads to a folder that is there already ({real}). Remove the link")
        seen.add(real)


def _decode(samples: list[tuple[str, int]], shape: tuple[int, ...]) -> Part:
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
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        done = workers.map(decode, range(len(samples)))
        try:
            for _ in tqdm(done, "decoding images", len(samples), leave=False, disable=None):
                pass
        except BadInputError:
            workers.shutdown(cancel_futures=True)  # the rest need not be decoded first
            raise
    return Part(torch.from_numpy(images), torch.tensor([label for _, label in samples]))


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


def _split_by_class(labels: Tensor, seed: int, shares: tuple[float, ...]) -> list[Tensor]:
    """Return the positions of one part for each share, then those of the rest, each in random order.

    The shares are taken class by class, rounded, and are at least one sample.
    """
    shuffled = torch.randperm(len(labels), generator=random_stream(seed, "split"))
    counts = labels.bincount()
    # Each sample's rank within its class: its place in an order sorted by class, less the place of the class.
    by_class = labels[shuffled].argsort(stable=True)
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels))
    rank -= (counts.cumsum(0) - counts)[labels[shuffled]]
    ends = torch.stack([(counts * share).round().long().clamp(min=1) for share in shares]).cumsum(0)
    part = (rank >= ends[:, labels[shuffled]]).sum(0)
    return [shuffled[part == number] for number in range(len(shares) + 1)]


def _rows(rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Part:
    """Make images `[N, F, 1, 1]` of a table `[N, F]`, with its labels `[N]`."""
    images = torch.from_numpy(rows.astype(np.float32))[:, :, None, None]
    return Part(images, torch.from_numpy(labels.astype(np.int64)))


def _take(part: Part, index: Tensor) -> Part:
    return Part(part.images[index], part.labels[index])


def _mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and deviation per channel of uint8 images, from counts of the 256 values."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    share, values = counts / counts.sum(1, keepdim=True), torch.arange(256).double()
    mean = share @ values
    std = (share @ values**2 - mean**2).clamp(min=0).sqrt()
    return mean.float(), _divisor(std)


def _column_mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column of a table `[N, F, 1, 1]`."""
    columns = images[:, :, 0, 0].double()
    return columns.mean(0).float(), _divisor(columns.std(0, correction=0))


def _divisor(std: Tensor) -> Tensor:
    """Return the deviations; 1 for a channel that is the same everywhere: it carries nothing and becomes zeros."""
    return torch.where(std > 1e-6, std, 1.0).float()


def _refuse_option(name: str, option: str) -> None:
    if option:
        raise BadInputError(f"task {name!r} takes no option; got {option!r}")


DATASETS: Mapping[str, DatasetBuilder] = {
    "digits": digits,
    "wine": partial(table, "wine"),
    "breast_cancer": partial(table, "breast_cancer"),
    "iris": partial(table, "iris"),
    "synthetic": synthetic,
    "toy": toy,
    "cifar10": partial(cifar, "CIFAR10"),
    "cifar100": partial(cifar, "CIFAR100"),
    "imagefolder": image_folder,
}
