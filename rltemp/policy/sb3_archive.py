"""The actor out of a Stable-Baselines3 archive: its weights (`read_actor`), and how it is built (`read_architecture`).

Such an archive holds pickles, and SB3's own loader follows them. Here `policy.pth` is read as tensors alone. `data` is
read as JSON, in which the pickles are text; one word of it is used, the activation's name.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.models.torch_files import open_archive, read_state_dict, reason
from rltemp.models.weight_files import check_finite, check_names_and_shapes
from rltemp.policy.policy_bytes import read_bytes

MAX_ARCHIVE_BYTES = 64 * 2**20
MAX_DATA_BYTES = 16 * 2**20
MEMBER, DATA = "policy.pth", "data"
LAYER = "mlp_extractor.policy_net"
NOT_THE_ACTOR = ("mlp_extractor.value_net.", "value_net.", "log_std")


class Architecture(NamedTuple):
    """How an actor is built: widths of its hidden layers; the activation's name, None where nothing says it."""

    hidden: list[int]
    activation: str | None


def read_architecture(path: Path) -> Architecture:
    """Return what an archive says of its actor: widths by the weights, the activation by the readable part of `data`.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where it is no such archive.
    """
    state, hidden = _state(path), list[int]()
    while (weight := state.get(f"{LAYER}.{2 * len(hidden)}.weight")) is not None:
        hidden.append(weight.shape[0] if weight.dim() else 0)
    return Architecture(hidden, _activation(path) if hidden else "tanh")


def read_actor(path: Path, widths: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of an `MlpPolicy`'s actor as a policy file has them: `"0.weight"` [out, in], `"0.bias"`, ...

    Args:
        path: What SB3's `save` wrote.
        widths: Of the observation, the hidden layers and the action: what the archive must hold.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where it holds anything else; what was expected and what was found are listed.
    """
    layers = [f"{LAYER}.{2 * place}" for place in range(len(widths) - 2)] + ["action_net"]
    expected: dict[str, Tensor] = {}
    for layer, (inside, out) in zip(layers, pairwise(widths), strict=True):
        # Shapes alone: a mistaken width allocates nothing.
        expected[f"{layer}.weight"] = torch.empty(out, inside, device="meta")
        expected[f"{layer}.bias"] = torch.empty(out, device="meta")
    state = _state(path)
    try:
        actor = {name: value for name, value in state.items() if not name.startswith(NOT_THE_ACTOR)}
        check_names_and_shapes(expected, actor, f"its {MEMBER}", "Give its own --arch, --features and --weight-ratio")
        check_finite(actor, f"its {MEMBER}")
    except ArtifactRefusedError as error:
        raise ArtifactRefusedError(one_line(f"archive {path.name}: {error}")) from None
    return {
        f"{place}.{part}": actor[f"{layer}.{part}"] for place, layer in enumerate(layers) for part in ("weight", "bias")
    }


def _state(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise BadInputError(one_line(f"archive {path} does not exist; needed: the file that `model.save` wrote"))
    try:
        return read_state_dict(io.BytesIO(_member(path, MEMBER, MAX_ARCHIVE_BYTES)), f"its {MEMBER}")
    except ArtifactRefusedError as error:
        raise ArtifactRefusedError(one_line(f"archive {path.name}: {error}")) from None


def _activation(path: Path) -> str | None:
    """The activation's name in lower case; SB3's own where the archive's JSON names none."""
    try:
        options = json.loads(_member(path, DATA, MAX_DATA_BYTES))["policy_kwargs"] or {}
        named = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w{1,40})'>", options["activation_fn"])
    except KeyError:
        return "tanh"
    except (ArtifactRefusedError, ValueError, TypeError, RecursionError):
        return None
    return named[1].lower() if named else None


def _member(path: Path, name: str, most: int) -> bytes:
    data = read_bytes(path, MAX_ARCHIVE_BYTES)
    if len(data) > MAX_ARCHIVE_BYTES:
        raise ArtifactRefusedError(f"is over {MAX_ARCHIVE_BYTES:,} bytes; no actor that fits a policy file needs them")
    try:
        with open_archive(io.BytesIO(data)) as archive:
            found = [entry for entry in archive.infolist() if entry.filename == name]
            if len(found) != 1:
                raise ValueError(f"it has {len(found)} members {name}, needed: one")
            return _unpacked(archive, found[0], most)
    except Exception as error:  # hostile bytes can make a decompressor raise anything
        raise ArtifactRefusedError(
            f"is not what Stable-Baselines3 saves ({reason(error)}). Give the file that `model.save` wrote"
        ) from None


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    if entry.file_size > most:
        raise ValueError(f"{entry.filename} unpacks to {entry.file_size:,} bytes, allowed: {most:,}")
    with archive.open(entry) as member:
        return member.read(most)
