"""The commands about policy files: `policy show`, `policy import` and `policy export`."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from pydantic import ValidationError

from rltemp.cli.console import say
from rltemp.errors import BadInputError, one_line
from rltemp.integrations.export import SUFFIXES, write
from rltemp.kd.names import lookup
from rltemp.kd.temperatures import OUTPUTS
from rltemp.loading import PIN, imports_code, named_policy
from rltemp.policy.features import DEFAULT_FEATURES, FEATURES
from rltemp.policy.manifest import PolicyAction, PolicyFeature, PolicyManifest, describe
from rltemp.policy.policy_file import ACTIVATIONS, write_policy
from rltemp.policy.rule import Policy
from rltemp.policy.sb3_archive import read_actor, read_architecture
from rltemp.rules.published_methods import reference_method
from rltemp.training.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class PolicyShow(RunOptions):
    """Run every check on a policy file and print what it says about itself; nothing in it is executed."""

    file: tyro.conf.Positional[str]
    """A policy file, or the name of a shipped policy."""

    def run(self) -> None:
        """Print what a policy file says about itself."""
        path, sha256 = named_policy(self.file)
        manifest = Policy.load(path, sha256).manifest
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        for line in [f"{path} passes every check.", *_described(manifest), f"SHA-256: {found}"]:
            say(one_line(line))
        say(f"Pinned: {self.file.partition(PIN)[0]}{PIN}{found}")


@dataclass(frozen=True, kw_only=True)
class PolicyImport(RunOptions):
    """Make a policy file of what Stable-Baselines3's PPO saved: the actor's weights are read, and no code runs.

    The archive does not hold in a safe form what its inputs and its actions mean; the options below say it.
    """

    file: tyro.conf.Positional[Path]
    """The archive that `model.save` wrote, of a model with MlpPolicy."""
    arch: str | None = None
    """Widths of the actor's hidden layers, as in 64,64, or none; by default those of the archive."""
    out: Path = Path("policy.safetensors")
    """The policy file to write."""
    features: tuple[str, ...] = DEFAULT_FEATURES
    """What the model observed, in order."""
    mean: tuple[float, ...] = ()
    """What was taken off each feature before the model saw it (VecNormalize's mean); by default nothing."""
    std: tuple[float, ...] = ()
    """What each feature was divided by (the root of VecNormalize's variance); by default 1."""
    activation: Literal["tanh", "relu"] | None = None
    """Between layers; by default what the archive says."""
    reference: str = "fixed:4"
    """The method that the policy moves around: the `method` of its environment."""
    ratio: float = 5.0
    """How far an action of 1 moves a temperature, as a factor; this and the next are its environment's `scale`."""
    minimum: float = 0.5
    """Lowest temperature."""
    maximum: float = 20.0
    """Highest temperature."""
    weight_ratio: float = 1.0
    """How far an action of 1 moves a sample's weight, as a factor; above 1 the action has a third number."""

    def run(self) -> None:
        """Write the policy file."""
        if self.out.exists():
            raise BadInputError(f"{self.out} exists and is not overwritten; choose another --out")
        reference_method(self.reference)
        bounds = {name: getattr(self, name) for name in ("ratio", "minimum", "maximum", "weight_ratio")}
        given = None if self.arch is None else _widths(self.arch)
        try:
            features, action = self._features(), PolicyAction(**bounds)
        except ValidationError as error:
            raise BadInputError(f"no policy file can hold these options: {describe(error)}") from None
        built = read_architecture(self.file)
        hidden = _widths(",".join(map(str, built.hidden)) or "none") if given is None else given
        write_policy(
            self.out,
            weights=read_actor(self.file, [len(features), *hidden, action.size]),
            activation=self._activation(built.activation),
            features=features,
            action=action,
            reference=self.reference,
            provenance={"imported_from": "stable-baselines3"},
        )
        say(f"Wrote {self.out}, from the weights of {self.file} alone.")
        say(f"Next:  {shlex.join(['rltemp', 'policy', 'show', str(self.out)])}")

    def _activation(self, found: str | None) -> str:
        """The activation that the archive and the option agree on."""
        if found is None and self.activation is None:
            raise BadInputError(f"{self.file} does not say what is between its layers; give --activation tanh or relu")
        if found is not None and found not in ACTIVATIONS:
            raise BadInputError(
                f"{self.file} has {found} between its layers; a policy file has {' or '.join(ACTIVATIONS)}"
            )
        if found is not None and self.activation not in (None, found):
            raise BadInputError(f"{self.file} has {found} between its layers, not {self.activation}: leave it out")
        return found or self.activation or ""

    def _features(self) -> list[PolicyFeature]:
        count = len(self.features)
        for option in ("mean", "std"):
            if len(getattr(self, option)) not in (0, count):
                raise BadInputError(f"--{option} needs a number for each of {count} features")
        known = {name: lookup(FEATURES, name, "feature") for name in self.features}
        columns = zip(self.features, self.mean or [0.0] * count, self.std or [1.0] * count, strict=True)
        return [
            PolicyFeature(name=name, version=known[name].version, unit=known[name].unit, mean=mean, std=std)
            for name, mean, std in columns
        ]


@dataclass(frozen=True, kw_only=True)
class PolicyExport(RunOptions):
    """Write a policy, or another rule, as a program for hosts without rltemp: torch.export's, or ONNX."""

    file: tyro.conf.Positional[str]
    """A policy file, the name of a shipped policy, or a rule's, as in dtkd:reference=2."""
    format: Literal["torch", "onnx"] = "torch"
    """torch: torch.export's .pt2; onnx: for ONNX Runtime and others."""
    top: bool = False
    """For a teacher of which only the top is known: teacher_ids, teacher_log_probs [B, K] and tail [B, 6]."""
    out: Path | None = None
    """The file to write; policy.pt2 or policy.onnx by default."""

    def run(self) -> None:
        """Write the program."""
        if imports_code(self.file):
            raise BadInputError(f"{self.file!r} would import a module; needed: a policy file or a rule's name")
        out = self.out or Path("policy").with_suffix(SUFFIXES[self.format])
        write(self.file, out, self.format, self.top)
        teacher = "teacher_ids, teacher_log_probs [B, K], tail [B, 6]" if self.top else "teacher_logits [B, C]"
        say(f"Wrote {out}: student_logits, {teacher}, progress [] to {', '.join(OUTPUTS)} [B].")


def _described(manifest: PolicyManifest) -> list[str]:
    """A manifest in lines for a person."""
    action = manifest.action
    widths = [manifest.layers[0][0], *(out for _, out in manifest.layers)]
    made = ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())
    weight = f", its weight by {action.weight_ratio:g}^a" if action.size == 3 else ""
    balanced = ", the weights balanced to the gradient of plain distillation" if action.balanced else ""
    return [
        f"Format {manifest.format_version}, made with {made}.",
        f"Network: {' -> '.join(map(str, widths))}, {manifest.activation}.",
        f"Action: the temperatures of {manifest.reference} times {action.ratio:g}^a, within [{action.minimum:g}, "
        f"{action.maximum:g}]{weight}{balanced}.",
        *(
            f"Feature {index}: {each.name} v{each.version} [{each.unit}], less {each.mean:g}, over {each.std:g}"
            + ("" if each.low is None else f", seen from {each.low:g} to {each.high:g}")
            for index, each in enumerate(manifest.features)
        ),
        *(f"Provenance: {name} = {value}" for name, value in manifest.provenance.items()),
    ]


def _widths(arch: str) -> list[int]:
    """Read `64,64`.

    >>> _widths("64,32"), _widths("none")
    ([64, 32], [])
    """
    words = [] if arch == "none" else arch.split(",")
    if len(words) > 3 or not all(word.isdecimal() and 0 < int(word[:6]) <= 1024 and len(word) < 6 for word in words):
        raise BadInputError(f"--arch needs up to 3 widths of 1 to 1024, as in 64,64, or none; got {arch[:80]!r}")
    return [int(word) for word in words]
