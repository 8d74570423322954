"""The bytes of a policy file: `pack` writes them, `unpack` checks them one by one before they are used.

A policy file is a safetensors file with the manifest in its metadata. The header follows from the manifest
byte for byte and two SHA-256 cover the rest, so any changed bit is noticed. `rltemp.policy.policy_file` checks what
the numbers do.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.policy.manifest import PolicyManifest, canonical_json, strict_json

MAX_FILE_BYTES = 8 * 2**20
MAX_MANIFEST_BYTES = 64 * 2**10
# The manifest with every character escaped once more, and room for eight tensors.
MAX_HEADER_BYTES = 2 * MAX_MANIFEST_BYTES + 4096
DAMAGED = "The file is damaged or was changed; copy it again or export it again"


def pack(manifest: PolicyManifest, body: bytes) -> bytes:
    """The one file that a manifest and its tensors' bytes can have; `weights_sha256` must be theirs already."""
    text = manifest.to_json()
    _check_manifest_size(text)
    return _header(text, tensor_shapes(manifest.layers)) + body


def unpack(data: bytes) -> tuple[PolicyManifest, dict[str, Tensor], str]:
    """The manifest, the weights and the manifest's SHA-256, check by check, each before what it protects.

    Nothing is allocated because a file claims it.

    Raises:
        ArtifactRefusedError: Naming the first check that fails.
    """
    header, body = _split(data)
    text, sha256 = _manifest_text(strict_json(header.decode(errors="replace"), "header"))
    manifest = PolicyManifest.from_json(text)
    shapes = tensor_shapes(manifest.layers)
    needed = sum(4 * math.prod(shape) for shape in shapes.values())
    if len(body) != needed:
        raise ArtifactRefusedError(f"has {len(body)} bytes of weights, its layers need {needed}. {DAMAGED}")
    # Names, types, shapes and places of the tensors among them.
    if data[: len(data) - len(body)] != _header(text, shapes):
        raise ArtifactRefusedError(f"header is not written as rltemp writes it. {DAMAGED}")
    _check_sha256("weights", weights_sha256(body, manifest.layers), manifest.weights_sha256)
    return manifest, safetensors.torch.load(data), sha256


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """The file's bytes, one more than `most` at most.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where it is no file that can be read.
    """
    try:
        path.stat()
        if not path.is_file():
            raise ArtifactRefusedError("is not a regular file. Name the policy.safetensors inside the folder")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        message = f"policy file {path} does not exist. Train one with `rltemp train-policy`"
        raise BadInputError(one_line(message)) from None
    except OSError as error:
        raise ArtifactRefusedError(f"cannot be read ({error.strerror}). Check its name and permissions") from None


def tensor_shapes(layers: Sequence[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by name, in the order of the file: sorted, as the four layers at most have one digit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in enumerate(layers):
        shapes |= {f"{index}.bias": (outputs,), f"{index}.weight": (outputs, inputs)}
    return shapes


def body_of(weights: Mapping[str, Tensor], layers: Sequence[tuple[int, int]]) -> bytes:
    """The tensors' bytes, in the order of the file."""
    return b"".join(weights[name].contiguous().numpy().astype("<f4").tobytes() for name in tensor_shapes(layers))


def weights_sha256(body: bytes, layers: Sequence[tuple[int, int]]) -> str:
    """SHA-256 of the shapes by name as canonical JSON, then of the tensors' bytes."""
    return _sha256(canonical_json(tensor_shapes(layers)).encode() + body)


def refuse_other_formats(data: bytes, path: Path) -> None:
    """Raise ArtifactRefusedError where the bytes are a zip archive's or a pickle's; `path` is what to convert."""
    # Our first 8 bytes are a length of at most MAX_HEADER_BYTES, so neither mark can open a policy file: a
    # zip's third and fourth byte, or a pickle's first opcode, make that length 2.6 MB at least.
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise ArtifactRefusedError(
            "is a Stable-Baselines3 archive, which can run code when loaded (or another zip). Convert it with "
            f"`rltemp policy import --arch 64,64 {shlex.quote(str(path))}` (its weights only), or take the "
            "policy.safetensors that `rltemp train-policy` writes"
        )
    if data[:1] == b"\x80" and data[2:3] >= b"(":
        raise ArtifactRefusedError(
            "is a pickle, which can run code when loaded. Ask for the file that `rltemp train-policy` writes"
        )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The header's bytes and the tensors' bytes."""
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactRefusedError(f"is over {MAX_FILE_BYTES} bytes. Give a file that `rltemp train-policy` wrote")
    if len(data) < 8:
        raise ArtifactRefusedError(f"has {len(data)} bytes, not even a header's length. {DAMAGED}")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ArtifactRefusedError(
            f"claims a header of {length} bytes, where {len(data) - 8} follow and {MAX_HEADER_BYTES} are "
            f"allowed: it is not a policy file, or cut short. {DAMAGED}"
        )
    return data[8 : 8 + length], data[8 + length :]


def _manifest_text(header: Any) -> tuple[str, str]:
    """The manifest's text and the SHA-256 that it was found to have."""
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not isinstance(text := metadata.get("rltemp"), str):
        raise ArtifactRefusedError("holds no policy manifest. Give a file that `rltemp train-policy` wrote")
    _check_manifest_size(text)
    sha256 = _sha256(text.encode())
    _check_sha256("manifest", sha256, metadata.get("rltemp_sha256"))
    return text, sha256


def _check_manifest_size(text: str) -> None:
    if not text.isascii() or len(text) > MAX_MANIFEST_BYTES:
        raise ArtifactRefusedError(
            f"manifest has {len(text)} characters; needed: ASCII, {MAX_MANIFEST_BYTES} at most. Shorten its provenance"
        )


def _check_sha256(what: str, found: str, stated: object) -> None:
    if found != stated:
        raise ArtifactRefusedError(
            f"SHA-256 mismatch of the {what} (stated {str(stated)[:12]}..., found {found[:12]}...). {DAMAGED}"
        )


def _header(manifest: str, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The one header that a policy can have, its length included; padded to 8 bytes as safetensors does."""
    metadata = {"rltemp": manifest, "rltemp_sha256": _sha256(manifest.encode())}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():  # one tensor behind the other
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
