"""Files of network weights: written as safetensors, read with every check before one number is used.

Weights come from other people's machines, so a file is checked in this order: its size, its format (no code
of it runs), its SHA-256 where it has one, names and shapes against the network, finite numbers. Only then does the
network change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.io.files import atomic_write
from rltemp.models.state_dicts import beginnings, fitting_names, shards
from rltemp.models.torch_files import expanded_bytes, read_state_dict, reason

MAX_FILE_BYTES = 4 * 1024**3
MAX_HEADER_BYTES = 16 * 1024**2  # a tensor's entry takes about 100 bytes
SHA256 = "tensors_sha256"
"""Where the metadata holds the SHA-256 of the tensors: safetensors itself notices few of the bits that flip."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".tar", ".ckpt", ".th", ".t7")
GIVE_ITS_MODEL = "Give the model that the file was written from"
LOGITS_SUFFIXES = (".npy", ".pt", ".safetensors")


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of `module` to a `.safetensors` file, whole or not at all.

    Args:
        module: Any network; it stays where it is, on any device.
        path: The file; its folder is made where it is missing.
        metadata: Text that `load_weights` gives back: how the network was trained.

    Raises:
        BadInputError: Where `path` has another suffix (it could not be read back) or cannot be written to.
    """
    if Path(path).suffix != ".safetensors":
        raise BadInputError(f"weights are written as .safetensors; got {path}")
    # Cloned, because safetensors refuses tensors that share memory, as tied layers do.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    said = {**metadata, SHA256: tensors_sha256(tensors)}
    atomic_write(path, _in_order(safetensors.torch.save(tensors, metadata=said)))


def load_weights(module: nn.Module, path: str | Path) -> dict[str, str]:
    """Fill `module` with the weights in a file and return the file's metadata.

    Args:
        module: A network with the names and shapes of the file; what stands before every name in the file, as
            `DataParallel`, `torch.compile` and wrappers write it, is dropped. It is unchanged where this raises.
        path: A `.safetensors` file, one of its shards or their index; or a torch file (`.pt`, `.pth.tar`, `.ckpt` and
            the like) with a state dict, by itself or under a usual key. Torch files have no metadata.

    Raises:
        BadInputError: Where there is no such file, or its suffix is not known.
        ArtifactRefusedError: Where the file is too large or not what its suffix says, was changed since
            `save_weights` wrote it, or holds code, other names, other shapes, or numbers that are not finite.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    expected = module.state_dict()
    tensors = fitting_names(tensors, expected)
    check_names_and_shapes(expected, tensors, str(path), f"{GIVE_ITS_MODEL}; {beginnings(tensors, expected)}")
    tensors = {name: value.to(expected[name].dtype) for name, value in tensors.items()}
    check_finite(tensors, str(path))
    module.load_state_dict(tensors)
    return metadata


def read_tensor(path: Path, what: str) -> Tensor:
    """Read the one tensor in a `.npy`, `.pt` or `.safetensors` file; no code of it runs.

    Raises:
        BadInputError: Where there is no such file, or it holds something other than one tensor of finite floats.
    """
    if not path.is_file():
        raise BadInputError(f"{what} {path}: no such file")
    try:
        if path.suffix == ".npy":
            found: object = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            held = list(safetensors.torch.load_file(path).values())
            found = held[0] if len(held) == 1 else None
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes can make a parser raise anything
        raise ArtifactRefusedError(f"{what} {path} cannot be read: {reason(error)}") from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or not bool(found.float().isfinite().all()):
        raise ArtifactRefusedError(f"{what} {path} must hold one tensor of finite floats")
    return found.float()


def _in_order(data: bytes) -> bytes:
    """The same file with its header's keys in order: safetensors writes them in another order every time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + data[end:]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, number formats, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata in a file, or in all of its shards."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    files = shards(path)
    if (size := sum(map(_checked_size, files))) > MAX_FILE_BYTES:
        raise ArtifactRefusedError(f"{path} holds {size:,} bytes; a weight file may hold {MAX_FILE_BYTES:,}")
    for file in files:
        if file.suffix.lower() == ".safetensors":
            found, metadata = _read_safetensors(file)
        else:
            with file.open("rb") as stream:
                found = read_state_dict(stream, str(file))
        tensors |= found
    return tensors, metadata


def _checked_size(path: Path) -> int:
    """The bytes that a file unpacks to."""
    if not path.is_file():
        raise BadInputError(f"no weight file {path}")
    if path.suffix.lower() not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise BadInputError(f"weight file {path} has the suffix {path.suffix!r}; needed: one of {known}")
    return expanded_bytes(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata from one reading of the file, so that both come from the same bytes."""
    data = path.read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ArtifactRefusedError(
            f"{path} is not a safetensors file: its first 8 bytes give a header of {header_bytes:,} bytes, "
            f"the file has {len(data):,}"
        )
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__")
    except Exception as error:  # hostile bytes can make a parser raise anything
        raise ArtifactRefusedError(f"{path} is not a safetensors file: {reason(error)}") from error
    stated = (metadata or {}).pop(SHA256, None)
    if stated is not None and stated != (found := tensors_sha256(tensors)):
        raise ArtifactRefusedError(
            f"{path}: SHA-256 mismatch (stated {stated[:12]}..., found {found[:12]}...). The file is damaged or was "
            "changed; copy it again"
        )
    return tensors, metadata or {}


def check_names_and_shapes(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    name: str,
    advice: str = GIVE_ITS_MODEL,
) -> None:
    """Raise ArtifactRefusedError where tensors have other names, shapes or kinds; list the first five, and advise."""
    differences = [
        f"{one_line(tensor)[:80]}: expected {_describe(expected.get(tensor))}, found {_describe(found.get(tensor))}"
        for tensor in [*expected, *sorted(set(found) - set(expected))]
        if _describe(expected.get(tensor)) != _describe(found.get(tensor))
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ArtifactRefusedError(f"{name} does not fit this network: {'; '.join(differences[:5])}{more}. {advice}")


def _describe(tensor: Tensor | None) -> str:
    """The kind and shape of a tensor in words; precision may differ, a real number for an integer may not."""
    if tensor is None:
        return "nothing"
    kind = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"
    return f"{kind} {list(tensor.shape)}"


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ArtifactRefusedError for the first tensor that holds nan or inf."""
    for tensor, value in tensors.items():
        if not value.float().isfinite().all():
            raise ArtifactRefusedError(f"{name}: {tensor} holds numbers that are not finite (as {value.dtype})")
