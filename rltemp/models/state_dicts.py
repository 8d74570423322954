"""Names in files of weights: what wraps a whole file is taken away, and shards are found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rltemp.errors import ArtifactRefusedError, one_line
from rltemp.io.run_folders import read_json

INDEX = ".safetensors.index.json"
MOST_SHARDS = 1000
_SHARD = re.compile(r"(.+-)(\d{5})-of-(\d{5})\.safetensors")


def fitting_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wraps the whole file, where a network's names are left then; else as they are.

    A batch norm's number of batches may be missing, as in old files, or in half precision, and an average's
    (`n_averaged`) may be there.
    """
    tensors = {name: value for name, value in tensors.items() if name != "n_averaged" or name in expected}
    first = min(tensors, default="")
    wraps = [first[: dot.end()] for dot in re.finditer(r"\.", first)]
    for end in [0, *(len(wrap) for wrap in wraps if all(name.startswith(wrap) for name in tensors))]:
        found = {name[end:]: value for name, value in tensors.items()}
        counts = {
            name: value
            for name, value in expected.items()
            if name.endswith(".num_batches_tracked") and (name not in found or found[name].is_floating_point())
        }
        if found.keys() | counts.keys() == expected.keys() and found.keys():
            return {**found, **counts}
    return tensors


def beginnings(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """With what the names in a file begin, in words, and what of it would fit a network."""
    if not tensors:
        return "the file holds no tensor"
    counts = Counter(name.partition(".")[0] for name in tensors)
    said = ", ".join(f"{one_line(first)[:40]} ({count})" for first, count in counts.most_common(5))
    wraps = {name.removesuffix(first) for first in list(expected)[:1] for name in tensors if name.endswith(f".{first}")}
    fitting = [one_line(wrap)[:80] for wrap in sorted(wraps) if all(f"{wrap}{name}" in tensors for name in expected)]
    advice = f"; those after {' or '.join(fitting)} fit: save these alone, without it" if fitting else ""
    return f"the file's names begin with {said}{', ...' if len(counts) > 5 else ''}{advice}"


def shards(path: Path) -> list[Path]:
    """The files that hold the tensors: the file itself, or, of an index or of one of several shards, all of them.

    Raises:
        BadInputError: Where there is no such index, or it is no JSON.
        ArtifactRefusedError: Where it names no shards.
    """
    if (part := _SHARD.fullmatch(path.name)) and path.is_file():
        count = min(int(part[3]), MOST_SHARDS)
        return [path.with_name(f"{part[1]}{number:05d}-of-{part[3]}.safetensors") for number in range(1, count + 1)]
    if not path.name.endswith(INDEX):
        return [path]
    named = read_json(path).get("weight_map")
    names = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
    if not names or len(names) > MOST_SHARDS or not all(_is_shard(name) for name in names):
        raise ArtifactRefusedError(
            f"{path} is no index of shards: needed is a weight_map with names of files beside it"
        )
    return [path.with_name(name) for name in names]


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors") and Path(name).name == name
