"""The manifest of a policy file: what its numbers mean, as a strict schema and strictly read JSON.

Unknown keys, numbers that are not finite, keys given twice and deep nesting are refused: a manifest may come
from a stranger. To add a field, add it here with a default and raise the minor version; `policy_bytes` holds
the bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from rltemp.errors import ArtifactRefusedError
from rltemp.io.strict_json import parse

FORMAT_VERSION = "1.2"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Width = Annotated[int, Field(ge=1, le=1024)]
# JSON has lists and no tuples, so these alone accept a list; what is inside them stays strict.
Layer = Annotated[tuple[Width, Width], Field(strict=False)]
Row = Annotated[tuple[float, ...], Field(strict=False, min_length=2, max_length=3)]
Text = Annotated[str, Field(max_length=512)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class PolicyFeature(_Strict):
    """One entry of the observation; the policy sees `(value - mean) / std`, mean and std in `unit`.

    `low` and `high`, in `unit` too, are the range seen in training, beyond which the policy fades
    (`rltemp.policy.fading`); they came with format 1.2. A feature has both or none, and fades nothing without.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$", max_length=64)
    version: int = Field(ge=1, le=10**6)
    unit: str = Field(max_length=32)
    mean: float = Field(ge=-1e6, le=1e6)
    std: float = Field(ge=1e-6, le=1e6)  # in float32 a smaller one would divide to inf or nan
    low: float | None = Field(default=None, ge=-1e6, le=1e6)
    high: float | None = Field(default=None, ge=-1e6, le=1e6)

    @model_validator(mode="after")
    def _both_or_none(self) -> PolicyFeature:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low {self.low} and high {self.high} must both be there, or none")
        if self.low is not None and self.high is not None and self.high - self.low < 1e-6:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a range as before there were any: files of then have hashes of this."""
        return {name: value for name, value in dump(self).items() if value is not None}


class PolicyAction(_Strict):
    """An action a in [-1, 1] means T = T_ref * exp(a * log(ratio)), clipped to [minimum, maximum].

    `weight_ratio` (above 1: a third number of the action scales the weight) and `balanced` came with format 1.1; see
    `rltemp.policy.actions.ActionScale`.
    """

    mapping: Literal["log"] = "log"
    ratio: float = Field(gt=1, le=1000)
    minimum: float = Field(ge=0.01)
    maximum: float = Field(le=1000)
    weight_ratio: float = Field(default=1.0, ge=1, le=1000)
    balanced: bool = False

    @property
    def size(self) -> int:
        """How many numbers an action has."""
        return 3 if self.weight_ratio > 1 else 2

    @model_validator(mode="after")
    def _ordered(self) -> PolicyAction:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} must be below maximum {self.maximum}")
        return self


class SelfTest(_Strict):
    """The 16 mean actions (student, teacher, weight) that the network gives for observations drawn from `seed`."""

    seed: int = Field(ge=0, lt=2**32)
    expected: tuple[Row, ...] = Field(min_length=16, max_length=16, strict=False)


class PolicyManifest(_Strict):
    """Everything about a policy except its weights.

    `layers` are the (in, out) widths of an MLP. `reference` names the method whose temperatures the action
    scales and whose coefficients it was trained with: one of `METHODS` in `rltemp.rules.published_methods`, never
    something to import.
    """

    format: Literal["rltemp-policy"] = "rltemp-policy"
    format_version: str = Field(default=FORMAT_VERSION, pattern=r"^1\.(0|[1-9][0-9]{0,3})$")
    created_with: dict[str, Text] = Field(max_length=16)
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=4, strict=False)
    activation: Literal["tanh", "relu"]
    features: tuple[PolicyFeature, ...] = Field(min_length=1, max_length=1024, strict=False)
    feature_spec_sha256: Sha256
    action: PolicyAction
    # A bare option is a number and any other is key=value, so `module:attribute` does not fit.
    reference: str = Field(
        pattern=r"^[a-z0-9_]+(:([0-9.+-][0-9e.+-]*|[a-z0-9_]+=[a-z0-9_.+-]*)?(,[a-z0-9_]+=[a-z0-9_.+-]*)*)?$",
        max_length=200,
    )
    weight: Literal["product"] = "product"
    weights_sha256: Sha256
    self_test: SelfTest
    provenance: dict[Text, Text | Integer | float] = Field(max_length=64)

    @model_validator(mode="after")
    def _agreement(self) -> PolicyManifest:
        actions = self.action.size
        widths = [len(self.features), *(width for layer in self.layers for width in layer), actions]
        if widths[::2] != widths[1::2]:
            raise ValueError(
                f"layers {list(self.layers)} must lead from {len(self.features)} features to {actions} actions, each "
                "from the width of the one before"
            )
        if self.feature_spec_sha256 != feature_spec_sha256(self.features):
            raise ValueError("feature_spec_sha256 is not that of the listed features")
        return self

    def to_json(self) -> str:
        """The manifest as canonical JSON, the text that is stored and hashed."""
        return canonical_json(self.model_dump(mode="json"))

    @staticmethod
    def from_json(text: str) -> PolicyManifest:
        """Read a manifest that may come from a stranger.

        Raises:
            ArtifactRefusedError: Naming the first field that is wrong, or a format newer than this code.
        """
        raw = strict_json(text, "manifest")
        newer = _newer_format(raw)
        if newer and not newer.startswith("1."):
            raise ArtifactRefusedError(f"format {newer}, this rltemp reads up to 1.x: pip install -U rltemp")
        try:
            return PolicyManifest.model_validate(raw)
        except ValidationError as error:
            fix = "pip install -U rltemp" if newer else "Train the policy again with `rltemp train-policy`"
            raise ArtifactRefusedError(f"manifest {describe(error)}. {fix}") from None


def canonical_json(value: Any) -> str:
    """The one way a value is written here: sorted keys, no spaces, ASCII, finite numbers.

    >>> canonical_json({"b": 1.0, "a": [2]})
    '{"a":[2],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def feature_spec_sha256(features: Sequence[PolicyFeature]) -> str:
    """SHA-256 of the canonical JSON of the features in order: names, versions, units, normalisation."""
    spec = canonical_json([feature.model_dump(mode="json") for feature in features])
    return hashlib.sha256(spec.encode()).hexdigest()


def refuse_unknown_features(manifest: PolicyManifest, known: Mapping[str, tuple[int, str]]) -> None:
    """Raise ArtifactRefusedError with every feature whose (version, unit) is another in the running code."""
    differing = []
    for index, feature in enumerate(manifest.features):
        here = known.get(feature.name)
        if here != (feature.version, feature.unit):
            ours = f"v{here[0]} [{here[1]}] here" if here else "unknown here"
            differing.append(f"{index}: {feature.name} v{feature.version} [{feature.unit}] in policy, {ours}")
    if differing:
        rest = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        maker = manifest.created_with.get("rltemp", "unknown")[:32]
        raise ArtifactRefusedError(
            f"features differ: {'; '.join(differing[:8])}{rest}. Use the rltemp that made it ({maker}) or "
            "train it again"
        )


def strict_json(text: str, what: str) -> Any:
    """Parse JSON with at most 8 levels, no NaN or Infinity and no key twice; linear in any text's length.

    >>> strict_json('{"a": 1, "a": 2}', "it")
    Traceback (most recent call last):
    rltemp.errors.ArtifactRefusedError: it is not strict JSON (key 'a' is given twice). Copy the file again
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ArtifactRefusedError(f"{what} is not strict JSON ({error}). Copy the file again") from None


def describe(error: ValidationError) -> str:
    """The first of pydantic's complaints on one line: the field, what is wrong, how many more there are."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80] or "as a whole"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {first['msg'].removeprefix('Value error, ')[:200]}{more}"


def _newer_format(raw: Any) -> str | None:
    """The manifest's format version where it is above ours."""
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
        return None
    theirs, ours = ([int(part) for part in text.split(".")] for text in (version, FORMAT_VERSION))
    return version if theirs > ours else None
