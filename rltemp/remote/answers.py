"""What a client asks a temperature controller (`rltemp serve`) about one model, and what of the answers it believes.

Nothing that a controller says is imported or run: a policy passes the checks of every policy file, or those of its
manifest, and a rule's name is one of `rltemp.rules.published_methods.METHODS` or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rltemp.errors import BadInputError, ExchangeFailedError
from rltemp.io.strict_json import parse
from rltemp.kd.method import Method
from rltemp.policy.manifest import PolicyManifest, refuse_unknown_features
from rltemp.policy.policy_file import PolicyFile, check_policy
from rltemp.policy.rule import KNOWN_FEATURES
from rltemp.remote.exchange import Exchange
from rltemp.remote.wire import LENGTH, Array, Shape, answer, named_version, request
from rltemp.rules.published_methods import reference_method

VERSION = "rltemp-model-version"
"""The header in which a policy's file comes with its version."""
MAX_METADATA = 512 * 2**10
"""Bytes of a model's description, most of them a manifest with every character escaped once more."""


@dataclass(frozen=True)
class Description:
    """A model as its controller describes it.

    Args:
        version: The newest.
        sha256: Of a policy; None for a rule.
        manifest: Of a policy; None for a rule.
        rule: The method behind a rule; None for a policy.
    """

    version: str
    sha256: str | None = None
    manifest: PolicyManifest | None = None
    rule: Method | None = None


class Controller:
    """One model at a controller.

    Args:
        url: The controller's.
        model: The model's name there.
        token: That it asks for, if any.

    All methods raise `ExchangeFailedError` where there is no good answer in time, and `RequestRefusedError` where the
    controller calls the question a mistake.
    """

    def __init__(self, url: str, model: str, token: str | None = None) -> None:
        if not model or len(model) > 256 or not model.isprintable():
            raise BadInputError(f"a model's name at a controller has 1 to 256 printable characters; got {model[:80]!r}")
        self.model = model
        self.exchange = Exchange(url, token)
        self._path = f"/v2/models/{quote(model, safe=':,=')}"

    def infer(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Shape], deadline: float
    ) -> tuple[str, dict[str, Array]]:
        """The version that answered, and its outputs, finite float32 arrays of the shapes that are asked for.

        Args:
            inputs: Arrays by name.
            outputs: Shapes by name.
            deadline: Seconds.
        """
        body, headers = request(inputs, outputs)
        found = self.exchange.ask("POST", f"{self._path}/infer", body, headers, deadline=deadline).checked()
        return answer(found.body, found.headers.get(LENGTH.lower()), outputs)

    def describe(self, deadline: float) -> Description:
        """What the model is."""
        found = self.exchange.ask("GET", self._path, deadline=deadline).checked()
        if len(found.body) > MAX_METADATA:
            raise ExchangeFailedError(f"its description is over {MAX_METADATA} bytes")
        try:
            return _description(parse(found.body.decode()))
        except ExchangeFailedError:
            raise
        except (ValueError, LookupError, TypeError) as error:  # a refused manifest and an unknown rule among them
            said = str(error) if isinstance(error, BadInputError) else type(error).__name__
            raise ExchangeFailedError(f"its description of {self.model!r} cannot be used ({said[:300]})") from None

    def policy(self, sha256: str | None, deadline: float) -> tuple[PolicyFile, str] | None:
        """The policy's file and its version, checked; None where it is still the one with this SHA-256."""
        headers = {} if sha256 is None else {"If-None-Match": f'"{sha256}"'}
        found = self.exchange.ask("GET", f"{self._path}/policy", b"", headers, deadline=deadline).checked(304)
        if found.status == 304:
            return None
        try:
            file = check_policy(found.body, Path(f"{self.model}.safetensors"), KNOWN_FEATURES)
        except BadInputError as error:
            raise ExchangeFailedError(f"its policy is refused: {error}") from None
        return file, named_version(found.headers.get(VERSION, "unknown"))


def _description(raw: Any) -> Description:
    told, versions = raw["parameters"], raw["versions"]
    if told["kind"] == "rule":
        return Description(named_version(versions[-1]), rule=reference_method(told["spec"]))
    if told["kind"] != "policy":
        raise ValueError("neither a policy nor a rule")
    manifest = PolicyManifest.from_json(told["manifest"])
    refuse_unknown_features(manifest, KNOWN_FEATURES)
    reference_method(manifest.reference)
    return Description(named_version(told["version"]), str(told["sha256"])[:64], manifest)
