"""The picture files of a folder, one folder to a class: listed, not decoded."""

from __future__ import annotations

import filecmp
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rltemp.errors import BadInputError
from rltemp.optional_imports import import_library
from rltemp.pictures.decoding import SUFFIXES

log = logging.getLogger(__name__)

TAIL_BYTES = 4096
"""At the end of a file, which tell most pictures of one length apart."""


class Listed(NamedTuple):
    """The files of one split.

    Args:
        classes: Names of the classes, in order.
        files: Paths.
        labels: Of every file, the place of its class.
    """

    classes: list[str]
    files: list[str]
    labels: list[int]


def listed(folder: Path) -> Listed:
    """List `folder/<class>/**/*`; what begins with a dot is skipped, what is no picture by its name is counted.

    Raises:
        BadInputError: Where there is no class, or one without a picture, or a link leads to a folder that is there
            already.
    """
    make_dataset = import_library("torchvision.datasets.folder", "task 'imagefolder'").make_dataset
    if not (classes := class_names(folder)):
        raise BadInputError(f"{folder} holds no folder of a class; needed: {folder}/<class>/*")
    _refuse_links(folder)
    others: list[str] = []

    def taken(path: str) -> bool:
        place = path[len(str(folder)) :]
        if os.sep + "." in place:
            return False
        if not place.lower().endswith(SUFFIXES):
            others.append(place.lstrip(os.sep))
            return False
        return True

    places = {name: place for place, name in enumerate(classes)}
    try:
        found = make_dataset(folder, places, is_valid_file=taken, allow_empty=True)
    except OSError as error:
        raise BadInputError(f"{folder} cannot be used as a folder of images: {error}") from error
    if empty := sorted(places.keys() - {classes[label] for _, label in found}):
        raise BadInputError(
            f"{folder}: no picture in {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}; every class needs "
            f"one. Remove the folder, or put {', '.join(SUFFIXES)} there"
        )
    if others:
        log.warning(
            f"{folder}: {len(others)} files are left out ({', '.join(sorted(others)[:3])}"
            f"{', ...' if len(others) > 3 else ''}); read are {', '.join(SUFFIXES)}"
        )
    return Listed(classes, [file for file, _ in found], [label for _, label in found])


def class_names(folder: Path) -> list[str]:
    """The folders in a folder that are not hidden, in order."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def warn_of_copies(train: Iterable[str], other: Iterable[str], what: str) -> None:
    """Count the files that are training files byte for byte, and warn of them."""
    known: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    wanted = [(file, os.path.getsize(file)) for file in filter(os.path.isfile, other)]  # a pipe would wait
    sizes = {size for _, size in wanted}
    for file in filter(os.path.isfile, train):
        if (size := os.path.getsize(file)) in sizes:
            known[size, _tail(file)].append(file)
    copies = [
        file
        for file, size in wanted
        if any(filecmp.cmp(file, one, shallow=False) for one in known.get((size, _tail(file)), ()))
    ]
    if copies:
        log.warning(
            f"{len(copies)} of {len(wanted)} {what} pictures are training pictures as well (as {copies[0]}): what is "
            f"measured on {what} is too good. Remove them from one of the two"
        )


def _refuse_links(folder: Path) -> None:
    """Refuse links to a folder that is there already: they double a class, or lead round to ever more folders."""
    seen: dict[str, str] = {}
    for place, _, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            link, other = _link_in(folder, place), seen[real]
            if link is None:
                link, other = _link_in(folder, seen[real]), place
            raise BadInputError(f"{link} is a link to a folder that is there already ({other}). Remove the link")
        seen[real] = place


def _link_in(folder: Path, place: str) -> Path | None:
    """The first link on the way from a folder to a place below it."""
    steps = Path(place).relative_to(folder).parts
    ways = (folder.joinpath(*steps[:count]) for count in range(1, len(steps) + 1))
    return next((way for way in ways if way.is_symlink()), None)


def _tail(file: str) -> bytes:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - TAIL_BYTES))
        return stream.read()
