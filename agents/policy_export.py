"""Policy files: what leaves the trainer, and what a training may begin from, is numbers and their meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import SampleNetwork
from rltemp.envs.episode import Decision
from rltemp.errors import BadInputError
from rltemp.loading import named_policy
from rltemp.policy.fading import Ranges
from rltemp.policy.features import FEATURES
from rltemp.policy.manifest import PolicyAction, PolicyFeature, PolicyManifest
from rltemp.policy.policy_file import PolicyFile, read_policy, write_policy
from rltemp.policy.rule import KNOWN_FEATURES


def export_policy(
    path: Path,
    network: SampleNetwork,
    weights: Tensor,
    decision: Decision,
    provenance: Mapping[str, str | int | float] | None = None,
    ranges: Ranges | None = None,
) -> str:
    """Write the policy file of a network under given weights.

    Args:
        path: `policy.safetensors`, written atomically.
        network: Its layout and the normalisation of its observations.
        weights: Flat, `[P]`.
        decision: The reference, the features and the scale of the environment that it was trained in.
        provenance: How it was trained; at most 64 short entries.
        ranges: What each feature was in training, of `seen_ranges`, beyond which the policy fades; None: it never does.

    Returns:
        The SHA-256 that names the policy.
    """
    names = decision.features
    seen: Sequence[tuple[float | None, float | None]] = ranges or [(None, None)] * len(names)
    features = [
        PolicyFeature(
            name=name, version=FEATURES[name].version, unit=FEATURES[name].unit, mean=mean, std=std, low=low, high=high
        )
        for name, mean, std, (low, high) in zip(names, network.mean.tolist(), network.std.tolist(), seen, strict=True)
    ]
    return write_policy(
        path,
        weights=network.tensors(weights),
        activation=network.activation,
        features=features,
        action=PolicyAction(**asdict(decision.scale)),
        reference=decision.method.name,
        provenance=provenance,
    )


def starting_policy(config: PolicyConfig) -> PolicyFile | None:
    """The policy that a training begins as; None where it begins as the reference.

    Raises:
        BadInputError: Where there is no such policy, or it sees or does something else than the options say.
        ArtifactRefusedError: Where the file fails a check.
    """
    if config.start_from is None:
        return None
    path, sha256 = named_policy(config.start_from)
    file = read_policy(path, KNOWN_FEATURES, sha256)
    theirs = options_of(file.manifest)
    if differing := [option for option in theirs if getattr(config, option) != theirs[option]]:
        told = "; ".join(f"{option} {theirs[option]} there, {getattr(config, option)} here" for option in differing)
        raise BadInputError(
            f"--start-from {config.start_from}: {told}. Leave these options out, or give those that it was trained with"
        )
    return file


def options_of(manifest: PolicyManifest) -> dict[str, Any]:
    """What a policy sees and does, by the names of `PolicyShape`."""
    hidden = tuple(out for _, out in manifest.layers[:-1])
    return {
        "features": tuple(feature.name for feature in manifest.features),
        "reference": manifest.reference,
        "hidden": hidden,
        **({"activation": manifest.activation} if hidden else {}),  # else nothing is activated
        "shared": False,  # a file has a row of the last layer for every number of the action
        **manifest.action.model_dump(exclude={"mapping"}),
    }
