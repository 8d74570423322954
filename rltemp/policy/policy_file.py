"""A policy as one file: weights as tensors, the manifest in safetensors' own metadata. Reading runs no code.

`write_policy` and `read_policy` are the two doors, `forward` the function that the file stands for. That
any changed bit is noticed (`rltemp.policy.policy_bytes`) stops accidents; a stranger can still write a well-formed
policy with bad temperatures, which the schema's bounds confine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, BadInputError, one_line
from rltemp.io.files import atomic_write
from rltemp.io.versions import versions
from rltemp.kd.names import lookup
from rltemp.policy.manifest import (
    PolicyAction,
    PolicyFeature,
    PolicyManifest,
    SelfTest,
    describe,
    feature_spec_sha256,
    refuse_unknown_features,
)
from rltemp.policy.policy_bytes import (
    body_of,
    pack,
    read_bytes,
    refuse_other_formats,
    tensor_shapes,
    unpack,
    weights_sha256,
)

MAX_WEIGHT = 1e3
SELF_TEST_TOLERANCE = 1e-5
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}

KnownFeatures = Mapping[str, tuple[int, str]]


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
        `[..., A]`: the action for the student's temperature, the teacher's and, where it has one, the weight.
    """
    activate = lookup(ACTIVATIONS, activation, "activation")
    hidden = F.linear(observation, weights["0.weight"], weights["0.bias"])
    for index in range(1, len(weights) // 2):
        hidden = F.linear(activate(hidden), weights[f"{index}.weight"], weights[f"{index}.bias"])
    return hidden


def write_policy(path: str | Path, **content: Any) -> str:
    """Write a policy file atomically, once its bytes have passed every check of `read_policy`.

    Args:
        path: Where.
        **content: As `encode_policy` takes it.

    Returns:
        The policy's SHA-256, as `PolicyFile.sha256`.

    Raises:
        BadInputError: Where a field or a weight cannot go into a policy file; nothing is written then.
    """
    path = Path(path)
    try:
        data, sha256 = encode_policy(**content)
    except BadInputError as error:
        raise BadInputError(one_line(f"cannot write policy file {path.name}: {error}")) from None
    atomic_write(path, data)
    return sha256


def encode_policy(
    *,
    weights: Mapping[str, Tensor],
    activation: str,
    features: Sequence[PolicyFeature],
    action: PolicyAction,
    reference: str,
    provenance: Mapping[str, str | int | float] | None = None,
    created_with: Mapping[str, str] | None = None,
    self_test_seed: int = 0,
) -> tuple[bytes, str]:
    """The bytes of a policy file, which have passed every check of `read_policy`, and the policy's SHA-256.

    The same arguments give the same bytes. `created_with` defaults to the installed versions of what matters;
    the other fields are `PolicyManifest`'s.

    Raises:
        BadInputError: Where a field or a weight cannot go into a policy file.
    """
    try:
        tensors = {name: weights[name].detach().to("cpu", torch.float32) for name in sorted(weights)}
        layers = _layers(tensors, action.size)
        body = body_of(tensors, layers)
        _check_values(tensors)
        manifest = PolicyManifest(
            created_with=dict(versions() if created_with is None else created_with),
            layers=layers,
            activation=activation,  # type: ignore[arg-type]  # the schema is what checks it
            features=tuple(features),
            feature_spec_sha256=feature_spec_sha256(features),
            action=action,
            reference=reference,
            weights_sha256=weights_sha256(body, layers),
            self_test=SelfTest(seed=self_test_seed, expected=_self_test_actions(tensors, activation, self_test_seed)),
            provenance=dict(provenance or {}),
        )
        data = pack(manifest, body)
        policy = _decode(data, None)
    except ValueError as error:
        raise BadInputError(describe(error) if isinstance(error, ValidationError) else str(error)) from None
    return data, policy.sha256


def read_policy(path: str | Path, known_features: KnownFeatures | None = None, sha256: str | None = None) -> PolicyFile:
    """Read a policy file that may come from a stranger; what comes back passed every check.

    Args:
        path: The file.
        known_features: The running code's (version, unit) by feature name; None skips this one check.
        sha256: Of the whole file, as `sha256sum` prints it, where the caller wants this file and no other.

    Raises:
        BadInputError: Where there is no such file.
        ArtifactRefusedError: Where a check fails; one line with the file, the check and what to do.
    """
    return check_policy(read_unchecked(Path(path)), Path(path), known_features, sha256)


def read_unchecked(path: Path) -> bytes:
    """A policy file's bytes, for `check_policy`; the same errors as `read_policy`'s where there are none."""
    try:
        return read_bytes(path)
    except ArtifactRefusedError as error:
        raise _refused(path, error) from None


def check_policy(
    data: bytes, path: Path, known_features: KnownFeatures | None = None, sha256: str | None = None
) -> PolicyFile:
    """`read_policy` of bytes, wherever they come from; `path` is what to call them in a message."""
    try:
        refuse_other_formats(data, path)
        found = hashlib.sha256(data).hexdigest()
        if sha256 not in (None, found):
            raise ArtifactRefusedError(
                f"SHA-256 mismatch (pinned {str(sha256)[:12]}..., file {found[:12]}...): it is not the file that was "
                "pinned. Get that one, or look at this one with `rltemp policy show` and pin it"
            )
        return _decode(data, known_features)
    except ArtifactRefusedError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: ArtifactRefusedError) -> ArtifactRefusedError:
    return ArtifactRefusedError(one_line(f"policy file {path.name}: {error}"))


def _decode(data: bytes, known_features: KnownFeatures | None) -> PolicyFile:
    manifest, weights, sha256 = unpack(data)
    _check_values(weights)
    if known_features is not None:
        refuse_unknown_features(manifest, known_features)
    _check_self_test(manifest, weights)
    return PolicyFile(manifest, weights, sha256)


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
        close = len(found) == len(expected) and np.allclose(
            found, expected, rtol=SELF_TEST_TOLERANCE, atol=SELF_TEST_TOLERANCE
        )
        if not close:
            raise ArtifactRefusedError(
                f"self-test {index} gives {found}, the manifest says {expected}: not the function that was "
                "exported. Use the rltemp that made it, or export it again"
            )


def _self_test_actions(weights: Mapping[str, Tensor], activation: str, seed: int) -> tuple[tuple[float, ...], ...]:
    """Mean actions [16, A] on standard-normal observations; float64, so the order of sums is no matter."""
    doubles = {name: tensor.double() for name, tensor in weights.items()}
    # RandomState, because numpy keeps its stream for ever and reserves the right to change default_rng's.
    observation = np.random.RandomState(seed).standard_normal((16, doubles["0.weight"].shape[1]))
    actions = forward(doubles, activation, torch.from_numpy(observation)).tolist()
    return tuple(tuple(float(f"{value:.9g}") for value in row) for row in actions)


def _layers(weights: Mapping[str, Tensor], outputs: int) -> tuple[tuple[int, int], ...]:
    """The (in, out) widths of tensors that form a network with so many outputs."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    sizes = [found.get(f"{index}.weight", ()) for index in range(len(found) // 2)]
    layers = tuple((size[1], size[0]) for size in sizes if len(size) == 2 and 0 not in size)
    chained = all(before[1] == after[0] for before, after in pairwise(layers))
    if not layers or found != tensor_shapes(layers) or not chained or layers[-1][1] != outputs:
        raise BadInputError(
            f"weights must be 0.weight [out, in], 0.bias [out], 1.weight, ... to {outputs} outputs, each layer's in "
            f"the out of the one before; got {found}"
        )
    return layers
