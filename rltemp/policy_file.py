"""A policy as one file: weights as tensors, the manifest in safetensors' own metadata. Reading runs no code.

`write_policy` and `read_policy` are the two doors, `forward` the function that the file stands for. The
header follows from the manifest byte for byte and two SHA-256 cover the rest, so any changed bit is noticed.
That stops accidents; a stranger can still write a well-formed policy with bad temperatures, which the
schema's bounds confine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.files import atomic_write
from rltemp.manifest import (
    PolicyAction,
    PolicyFeature,
    PolicyManifest,
    SelfTest,
    canonical_json,
    describe,
    feature_spec_sha256,
    refuse_unknown_features,
    strict_json,
)
from rltemp.names import lookup
from rltemp.runs import versions

MAX_FILE_BYTES = 8 * 2**20
MAX_MANIFEST_BYTES = 64 * 2**10
# The manifest with every character escaped once more, and room for eight tensors.
MAX_HEADER_BYTES = 2 * MAX_MANIFEST_BYTES + 4096
MAX_WEIGHT = 1e3
SELF_TEST_TOLERANCE = 1e-5
DAMAGED = "The file is damaged or was changed; copy it again or export it again"
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}

KnownFeatures = Mapping[str, tuple[int, str]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PolicyFile:
    """A policy that passed every check.

    Args:
        manifest: What the numbers mean.
        weights: `"0.weight"` [out, in], `"0.bias"` [out], `"1.weight"`, ...; float32 on the CPU.
        sha256: Of the manifest as stored, which holds that of the weights: one name for the whole policy.
    """

    manifest: PolicyManifest
    weights: dict[str, Tensor]
    sha256: str


def forward(weights: Mapping[str, Tensor], activation: str, observation: Tensor) -> Tensor:
    """The mean action, before clipping, for normalised observations.

    Args:
        weights: As in `PolicyFile`, on the observation's device and of its dtype.
        activation: `"tanh"` or `"relu"`, between layers and not after the last.
        observation: `[..., F]`, each feature less its mean, over its std.

    Returns:
        `[..., 2]`: the action for the student's and for the teacher's temperature.
    """
    activate = lookup(ACTIVATIONS, activation, "activation")
    hidden = F.linear(observation, weights["0.weight"], weights["0.bias"])
    for index in range(1, len(weights) // 2):
        hidden = F.linear(activate(hidden), weights[f"{index}.weight"], weights[f"{index}.bias"])
    return hidden


def write_policy(
    path: str | Path,
    *,
    weights: Mapping[str, Tensor],
    activation: str,
    features: Sequence[PolicyFeature],
    action: PolicyAction,
    reference: str,
    ce_weight: float,
    kd_weight: float,
    provenance: Mapping[str, str | int | float] | None = None,
    created_with: Mapping[str, str] | None = None,
    self_test_seed: int = 0,
) -> str:
    """Write a policy file atomically, once its bytes have passed every check of `read_policy`.

    The same arguments give the same bytes. `created_with` defaults to the installed versions of what matters;
    the other fields are `PolicyManifest`'s.

    Returns:
        The policy's SHA-256, as `PolicyFile.sha256`.

    Raises:
        BadInputError: Where a field or a weight cannot go into a policy file; nothing is written then.
    """
    path = Path(path)
    try:
        tensors = {name: weights[name].detach().to("cpu", torch.float32) for name in sorted(weights)}
        layers = _layers(tensors)
        _check_values(tensors)
        shapes = _shapes(layers)
        body = b"".join(tensors[name].contiguous().numpy().astype("<f4").tobytes() for name in shapes)
        manifest = PolicyManifest(
            created_with=dict(versions() if created_with is None else created_with),
            layers=layers,
            activation=activation,  # type: ignore[arg-type]  # the schema is what checks it
            features=tuple(features),
            feature_spec_sha256=feature_spec_sha256(features),
            action=action,
            reference=reference,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            weights_sha256=_weights_sha256(shapes, body),
            self_test=SelfTest(
                seed=self_test_seed, expected=_self_test_actions(tensors, activation, self_test_seed)
            ),
            provenance=dict(provenance or {}),
        )
        text = manifest.to_json()
        _check_manifest_size(text)
        data = _header(text, shapes) + body
        policy = _decode(data, None)
    except ValueError as error:
        problem = describe(error) if isinstance(error, ValidationError) else error
        raise BadInputError(_one_line(f"cannot write policy file {path.name}: {problem}")) from None
    atomic_write(path, data)
    return policy.sha256


def read_policy(path: str | Path, known_features: KnownFeatures | None = None) -> PolicyFile:
    """Read a policy file that may come from a stranger; what comes back passed every check.

    Args:
        path: The file.
        known_features: The running code's (version, unit) by feature name; None skips this one check.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where a check fails; one line with the file, the check and what to do.
    """
    path = Path(path)
    try:
        return _decode(_read_bytes(path), known_features)
    except ArtifactRefusedError as error:
        raise ArtifactRefusedError(_one_line(f"policy file {path.name}: {error}")) from None


def _read_bytes(path: Path) -> bytes:
    try:
        path.stat()
        if not path.is_file():
            raise ArtifactRefusedError("is not a regular file. Name the policy.safetensors inside the folder")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        message = f"policy file {path} does not exist. Train one with `rltemp train-policy`"
        raise BadInputError(_one_line(message)) from None
    except OSError as error:
        raise ArtifactRefusedError(
            f"cannot be read ({error.strerror}). Check its name and permissions"
        ) from None


def _decode(data: bytes, known_features: KnownFeatures | None) -> PolicyFile:
    """Check by check, each before what it protects: nothing is allocated because a file claims it."""
    _refuse_other_formats(data)
    header_bytes, body = _split(data)
    try:
        header = strict_json(header_bytes.decode(), "header")
    except UnicodeDecodeError:
        raise ArtifactRefusedError(f"header is not UTF-8. {DAMAGED}") from None
    text, sha256 = _manifest_text(header)
    manifest = PolicyManifest.from_json(text)
    shapes = _shapes(manifest.layers)
    _check_tensors(header, shapes, len(body))
    if data[: len(data) - len(body)] != _header(text, shapes):
        raise ArtifactRefusedError(f"header is not written as rltemp writes it. {DAMAGED}")
    _check_sha256("weights", _weights_sha256(shapes, body), manifest.weights_sha256)
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ArtifactRefusedError(f"safetensors refuses it ({error}). {DAMAGED}") from None
    _check_values(weights)
    if known_features is not None:
        refuse_unknown_features(manifest, known_features)
    _check_self_test(manifest, weights)
    return PolicyFile(manifest, weights, sha256)


def _refuse_other_formats(data: bytes) -> None:
    # Our first 8 bytes are a length of at most MAX_HEADER_BYTES, so neither mark can open a policy file: a
    # zip's third and fourth byte, or a pickle's first opcode, make that length 2.6 MB at least.
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise ArtifactRefusedError(
            "is a Stable-Baselines3 archive, which can run code when loaded (or another zip). Convert one of "
            "your own with `rltemp export`, or ask for its policy.safetensors"
        )
    if data[:1] == b"\x80" and data[2:3] >= b"(":
        raise ArtifactRefusedError(
            "is a pickle, which can run code when loaded. Ask for the file that `rltemp export` writes"
        )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The header's bytes and the tensors' bytes."""
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactRefusedError(f"is over {MAX_FILE_BYTES} bytes. Give a file that `rltemp export` wrote")
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
        raise ArtifactRefusedError("holds no policy manifest. Give a file that `rltemp export` wrote")
    _check_manifest_size(text)
    sha256 = _sha256(text.encode())
    _check_sha256("manifest", sha256, metadata.get("rltemp_sha256"))
    return text, sha256


def _check_manifest_size(text: str) -> None:
    if not text.isascii() or len(text) > MAX_MANIFEST_BYTES:
        raise ArtifactRefusedError(
            f"manifest has {len(text)} characters; needed: ASCII, {MAX_MANIFEST_BYTES} at most. "
            "Shorten its provenance"
        )


def _check_tensors(header: Mapping[str, Any], shapes: Shapes, body_bytes: int) -> None:
    needed = _entries(shapes)
    for name in sorted((header.keys() | needed.keys()) - {"__metadata__"}):
        if header.get(name) != needed.get(name):
            raise ArtifactRefusedError(
                f"tensor {name[:40]!r} is {str(header.get(name))[:160]}, the manifest's layers need "
                f"{needed.get(name)}. {DAMAGED}"
            )
    end = sum(4 * math.prod(shape) for shape in shapes.values())
    if body_bytes != end:
        raise ArtifactRefusedError(f"has {body_bytes} bytes of weights, its layers need {end}. {DAMAGED}")


def _check_sha256(what: str, found: str, stated: object) -> None:
    if found != stated:
        raise ArtifactRefusedError(
            f"SHA-256 mismatch of the {what} (stated {str(stated)[:12]}..., found {found[:12]}...). {DAMAGED}"
        )


def _check_values(weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        largest = tensor.abs().max().item()
        if not largest < MAX_WEIGHT:  # NaN is not below anything either
            raise ArtifactRefusedError(
                f"tensor {name!r} holds {largest:g}; needed: finite, below {MAX_WEIGHT:g}. Train it again"
            )


def _check_self_test(manifest: PolicyManifest, weights: Mapping[str, Tensor]) -> None:
    actions = _self_test_actions(weights, manifest.activation, manifest.self_test.seed)
    for index, (found, expected) in enumerate(zip(actions, manifest.self_test.expected, strict=True)):
        if not np.allclose(found, expected, rtol=SELF_TEST_TOLERANCE, atol=SELF_TEST_TOLERANCE):
            raise ArtifactRefusedError(
                f"self-test {index} gives {found}, the manifest says {expected}: not the function that was "
                "exported. Use the rltemp that made it, or export it again"
            )


def _self_test_actions(
    weights: Mapping[str, Tensor], activation: str, seed: int
) -> tuple[tuple[float, float], ...]:
    """Mean actions [16, 2] on standard-normal observations; float64, so the order of sums is no matter."""
    doubles = {name: tensor.double() for name, tensor in weights.items()}
    # RandomState, because numpy keeps its stream for ever and reserves the right to change default_rng's.
    observation = np.random.RandomState(seed).standard_normal((16, doubles["0.weight"].shape[1]))
    actions = forward(doubles, activation, torch.from_numpy(observation)).tolist()
    return tuple((float(f"{student:.9g}"), float(f"{teacher:.9g}")) for student, teacher in actions)


def _layers(weights: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    """The (in, out) widths of tensors that form a network with two outputs."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    sizes = [found.get(f"{index}.weight", ()) for index in range(len(found) // 2)]
    layers = tuple((size[1], size[0]) for size in sizes if len(size) == 2 and 0 not in size)
    chained = all(before[1] == after[0] for before, after in pairwise(layers))
    if not layers or found != _shapes(layers) or not chained or layers[-1][1] != 2:
        raise BadInputError(
            "weights must be 0.weight [out, in], 0.bias [out], 1.weight, ... to 2 outputs, each layer's in "
            f"the out of the one before; got {found}"
        )
    return layers


def _shapes(layers: Sequence[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Tensor shapes by name, in the order of the file: sorted, as the four layers at most have one digit."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in enumerate(layers):
        shapes |= {f"{index}.bias": (outputs,), f"{index}.weight": (outputs, inputs)}
    return shapes


def _entries(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """The header's entry for each tensor, one behind the other."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return entries


def _header(manifest: str, shapes: Shapes) -> bytes:
    """The one header that a policy can have, its length included; padded to 8 bytes as safetensors does."""
    metadata = {"rltemp": manifest, "rltemp_sha256": _sha256(manifest.encode())}
    text = json.dumps({"__metadata__": metadata, **_entries(shapes)}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _weights_sha256(shapes: Shapes, body: bytes) -> str:
    """SHA-256 of the shapes by name as canonical JSON, then of the tensors' bytes in that order."""
    return _sha256(canonical_json(shapes).encode() + body)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _one_line(message: str) -> str:
    # Parts of it may come from the file: no line breaks, no terminal codes.
    return "".join(letter if letter.isprintable() else "?" for letter in message)[:2000]
