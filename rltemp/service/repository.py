"""What is served under which name and version; a new version appears whole, from one request to the next."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import lru_cache

from rltemp.errors import BadInputError
from rltemp.kd.names import closest, split_spec
from rltemp.loading import SHIPPED, named_policy
from rltemp.policy.policy_file import read_unchecked
from rltemp.rules.published_methods import METHODS, reference_method
from rltemp.service.refusals import Refusal
from rltemp.service.served_models import Model, PolicyModel, RuleModel

KEPT = 4
"""Versions of a model that stay served; of more, the oldest is dropped."""
MAX_RULES = 128
"""Rules that are kept built."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# As a policy file names its reference: no text that could name a module.
_SPEC = re.compile(r"[a-z0-9_]+(:[a-z0-9_.+=,-]*)?")
_MAX_SPEC = 200

Versions = tuple[PolicyModel, ...]


class Repository:
    """The policies that are served, and every closed-form rule on demand.

    Readers see one snapshot or the next; `publish` may be called from any thread.

    Args:
        policies: Policy files by name, pinned or not; those that come with the package are there already.

    Raises:
        BadInputError: For a name that cannot be, or a file that is not there.
        ArtifactRefusedError: For a file that fails a check.
    """

    def __init__(self, policies: Mapping[str, str] | None = None) -> None:
        self._writing = threading.Lock()
        self._policies: Mapping[str, Versions] = {}
        given = {**{name: name for name in SHIPPED}, **(policies or {})}
        for name, spec in given.items():
            path, sha256 = named_policy(spec)
            self._add(PolicyModel(check_name(name), read_unchecked(path), "1", path, sha256))

    def publish(self, name: str, data: bytes, version: str) -> None:
        """Serve a policy file's bytes as the newest version of a name.

        Raises:
            ArtifactRefusedError: Where the file fails a check; what was served stays.
            BadInputError: Where the name or version cannot be, or the version is served already.
        """
        if not re.fullmatch("[1-9][0-9]{0,17}", version):
            raise BadInputError(f"a version is a number of 1 or more; got {version[:80]!r}")
        self._add(PolicyModel(check_name(name), data, version))

    def find(self, name: str, version: str | None = None) -> Model:
        """The model of a name, its newest version where none is given.

        Raises:
            Refusal: 404 where there is none.
        """
        versions = self.versions(name)
        if version is None:
            return versions[-1]
        numbered = {model.version: model for model in versions}
        if version not in numbered:
            message = f"model {name[:80]!r} has no version {version[:80]!r}; it has {', '.join(numbered)}"
            raise Refusal(404, message, "unknown_model")
        return numbered[version]

    def versions(self, name: str) -> tuple[Model, ...]:
        """Every version of a name that is served, the newest last.

        Raises:
            Refusal: 404 where there is none.
        """
        if (found := self._policies.get(name)) is not None:
            return found
        kind = split_spec(name)[0]
        if len(name) > _MAX_SPEC or not _SPEC.fullmatch(name) or kind not in rule_names():
            raise Refusal(404, self._unknown(name, kind), "unknown_model")
        try:
            return (_rule(name),)
        except BadInputError as error:
            raise Refusal(404, f"no model {name!r}: {error}", "unknown_model") from None

    def policies(self) -> Mapping[str, Versions]:
        """The policies by name."""
        return self._policies

    def index(self) -> list[Model]:
        """Every policy in every version, and every rule at its defaults."""
        policies = [model for versions in self._policies.values() for model in versions]
        return [*policies, *(_rule(name) for name in rule_names())]

    def _unknown(self, name: str, kind: str) -> str:
        if kind in METHODS:
            return f"no model {name[:80]!r}: {kind!r} has no temperatures by a formula of a batch's logits"
        meant = closest(name[:80], [*self._policies, *rule_names()])
        hint = f"did you mean {meant!r}? " if meant else ""
        return f"no model {name[:80]!r}; {hint}POST /v2/repository/index lists those that are served"

    def _add(self, model: PolicyModel) -> None:
        with self._writing:
            before = self._policies.get(model.name, ())
            if any(old.version == model.version for old in before):
                raise BadInputError(f"version {model.version} of {model.name!r} is served already")
            self._policies = {**self._policies, model.name: (*before, model)[-KEPT:]}


def check_name(name: str) -> str:
    """A name that a policy can be served under.

    Raises:
        BadInputError: Where it cannot be.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"a model's name is 1 to 64 letters, digits and ._@-, a letter or digit first; got {name!r}"
        )
    if name in METHODS:
        raise BadInputError(f"{name!r} is a closed-form rule's name; give the policy another")
    return name


@lru_cache(1)
def rule_names() -> tuple[str, ...]:
    """The closed-form rules that a model can be, by name."""
    found = []
    for name in METHODS:
        try:
            reference_method(name)
        except BadInputError:
            continue
        found.append(name)
    return tuple(found)


@lru_cache(MAX_RULES)
def _rule(spec: str) -> RuleModel:
    return RuleModel(spec)
