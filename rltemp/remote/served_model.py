"""A model as a service has it (`rltemp serve`): asked for, checked, and made a method that runs in this process.

Nothing that a service says is imported or run: a policy passes the checks of every policy file, and a rule's name is
one of `rltemp.rules.published_methods.METHODS` or nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rltemp.errors import BadInputError, ExchangeFailedError, RequestRefusedError
from rltemp.io.strict_json import parse
from rltemp.kd.method import Method
from rltemp.policy.policy_file import PolicyFile, check_policy
from rltemp.policy.rule import KNOWN_FEATURES, Policy
from rltemp.remote.http_client import HttpClient
from rltemp.rules.published_methods import reference_method

VERSION = "rltemp-model-version"
"""The header in which a policy's file comes with its version."""
MAX_DESCRIPTION = 512 * 2**10
"""Bytes of a model's description, most of them a manifest with every character escaped once more."""


@dataclass(frozen=True)
class ServedModel:
    """What a service has said of a model.

    Args:
        version: Its name.
        method: With the rule that gives the model's temperatures, and the loss coefficients that go with it.
        reference: The closed-form method that the policy moves around, or that the model is.
        file: The policy's; None for a closed-form rule.
    """

    version: str
    method: Method
    reference: Method
    file: PolicyFile | None = None


def model_path(model: str) -> str:
    """Return the path of a model's routes.

    Raises:
        BadInputError: Where it can be no model's name.
    """
    if not model or len(model) > 256 or not model.isprintable():
        raise BadInputError(f"a model's name at a controller has 1 to 256 printable characters; got {model[:80]!r}")
    return f"/v2/models/{quote(model, safe=':,=')}"


def pull(client: HttpClient, model: str, known: ServedModel | None, seconds: float) -> ServedModel:
    """Return the newest version of a model; `known` itself where it is still that one.

    Raises:
        ExchangeFailedError: Where there is no good answer.
        RequestRefusedError: Where the service calls the request a mistake.
    """
    try:
        if known is not None and known.file is None:  # a closed-form rule stays what it is
            return known
        rule = None if known else _described(client, model, seconds)
        return rule or _pulled(client, model, known, seconds)
    except (ExchangeFailedError, RequestRefusedError):
        raise
    except Exception as error:  # a refused file, an unknown rule, or whatever else a service makes of the readers
        said = str(error) if isinstance(error, BadInputError) else type(error).__name__
        raise ExchangeFailedError(f"what it says of {model!r} cannot be used ({said[:300]})") from None


def named_version(version: Any) -> str:
    """Return a version's name.

    Raises:
        ExchangeFailedError: Where it is none.
    """
    if not isinstance(version, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", version):
        raise ExchangeFailedError("its answer names no version")
    return version


def _described(client: HttpClient, model: str, seconds: float) -> ServedModel | None:
    """The closed-form rule that a model is; None for a policy, which is to be pulled."""
    answer = client.request("GET", model_path(model), seconds=seconds)
    if len(answer.body) > MAX_DESCRIPTION:
        raise ExchangeFailedError(f"its description is over {MAX_DESCRIPTION} bytes")
    said = parse(answer.body.decode())
    if said["parameters"]["kind"] == "policy":
        return None
    if said["parameters"]["kind"] != "rule":
        raise ValueError("neither a policy nor a rule")
    method = reference_method(said["parameters"]["spec"])
    return ServedModel(named_version(said["versions"][-1]), replace(method, name=model), method)


def _pulled(client: HttpClient, model: str, known: ServedModel | None, seconds: float) -> ServedModel:
    """The policy, unless it is the one that is known."""
    headers = {"If-None-Match": f'"{known.file.sha256}"'} if known and known.file else {}
    allowed = (304,) if known else ()
    answer = client.request("GET", f"{model_path(model)}/policy", headers=headers, seconds=seconds, allowed=allowed)
    if known and answer.status == 304:
        return known
    file = check_policy(answer.body, Path(f"{model}.safetensors"), KNOWN_FEATURES)
    policy, version = Policy.of(file, model), named_version(answer.headers.get(VERSION, "unknown"))
    return ServedModel(version, policy.method(model), policy.reference, file)
