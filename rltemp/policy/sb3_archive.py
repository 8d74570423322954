"""The actor's weights out of a Stable-Baselines3 archive, and nothing else of it: `read_actor`.

Such an archive holds pickles, and SB3's own loader follows them. Here one member is read, `policy.pth`, as tensors
alone; `data`, where the pickles are, is never opened.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.models.torch_files import open_archive, read_state_dict, reason
from rltemp.models.weight_files import check_finite, check_names_and_shapes
from rltemp.policy.policy_bytes import read_bytes

MAX_ARCHIVE_BYTES = 64 * 2**20
MEMBER = "policy.pth"
NOT_THE_ACTOR = ("mlp_extractor.value_net.", "value_net.", "log_std")


def read_actor(path: Path, widths: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of an `MlpPolicy`'s actor as a policy file has them: `"0.weight"` [out, in], `"0.bias"`, ...

    Args:
        path: What SB3's `save` wrote.
        widths: Of the observation, the hidden layers and the action: what the archive must hold.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where it holds anything else; what was expected and what was found are listed.
    """
    layers = [f"mlp_extractor.policy_net.{2 * place}" for place in range(len(widths) - 2)] + ["action_net"]
    expected: dict[str, Tensor] = {}
    for layer, (inside, out) in zip(layers, pairwise(widths), strict=True):
        # Shapes alone: a mistaken width allocates nothing.
        expected[f"{layer}.weight"] = torch.empty(out, inside, device="meta")
        expected[f"{layer}.bias"] = torch.empty(out, device="meta")
    if not path.exists():
        raise BadInputError(one_line(f"archive {path} does not exist; needed: the file that `model.save` wrote"))
    try:
        state = read_state_dict(io.BytesIO(_member(path)), f"its {MEMBER}")
        actor = {name: value for name, value in state.items() if not name.startswith(NOT_THE_ACTOR)}
        check_names_and_shapes(expected, actor, f"its {MEMBER}", "Give its own --arch, --features and --weight-ratio")
        check_finite(actor, f"its {MEMBER}")
    except ArtifactRefusedError as error:
        raise ArtifactRefusedError(one_line(f"archive {path.name}: {error}")) from None
    return {
        f"{place}.{part}": actor[f"{layer}.{part}"] for place, layer in enumerate(layers) for part in ("weight", "bias")
    }


def _member(path: Path) -> bytes:
    data = read_bytes(path, MAX_ARCHIVE_BYTES)
    if len(data) > MAX_ARCHIVE_BYTES:
        raise ArtifactRefusedError(f"is over {MAX_ARCHIVE_BYTES:,} bytes; no actor that fits a policy file needs them")
    try:
        with open_archive(io.BytesIO(data)) as archive:
            found = [entry for entry in archive.infolist() if entry.filename == MEMBER]
            if len(found) != 1:
                raise ValueError(f"it has {len(found)} members {MEMBER}, needed: one")
            return _unpacked(archive, found[0])
    except Exception as error:  # hostile bytes can make a decompressor raise anything
        raise ArtifactRefusedError(
            f"is not what Stable-Baselines3 saves ({reason(error)}). Give the file that `model.save` wrote"
        ) from None


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > MAX_ARCHIVE_BYTES:
        raise ValueError(f"{MEMBER} unpacks to {entry.file_size:,} bytes, allowed: {MAX_ARCHIVE_BYTES:,}")
    with archive.open(entry) as member:
        return member.read(MAX_ARCHIVE_BYTES)
