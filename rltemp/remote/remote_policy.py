"""A policy whose network is asked at a service in every step: features go there, actions come back."""

from __future__ import annotations

import json
import threading
import time

import torch
from torch import Tensor

from rltemp.errors import ExchangeFailedError
from rltemp.io.strict_json import parse
from rltemp.policy.policy_file import PolicyFile
from rltemp.policy.rule import Policy
from rltemp.remote.http_client import HttpClient
from rltemp.remote.served_model import model_path

OVERSHOOT = 1e-6
"""How far an action may lie beyond -1 or 1, for rounding; it is clipped."""


class ActionClient:
    """Asks for the actions of one model, a request at a time, and waits for none longer than the deadline.

    A request has a thread of its own, because a socket's timeout starts anew with every byte that comes. One that hangs
    is left alone, and nothing more is asked until it ends.

    Args:
        client: Of the service.
        model: Its name there.
        deadline: Seconds.

    Attributes:
        seconds: That callers have waited so far.
        last_seconds: That the last good answer took; 0 before there is one.
    """

    def __init__(self, client: HttpClient, model: str, deadline: float) -> None:
        self.seconds = self.last_seconds = 0.0
        self._client, self._path, self._deadline = client, model_path(model), deadline
        self._thread = threading.Thread()

    def ask(self, version: str, features: Tensor, size: int) -> Tensor:
        """Return the actions `[N, size]` of a version for features `[N, F]`.

        Raises:
            ExchangeFailedError: Where there is no good answer in time, whatever the reason.
        """
        if self._thread.is_alive():
            raise ExchangeFailedError("an earlier request still hangs")
        began, found = time.perf_counter(), list[bytes | Exception]()
        self._thread = threading.Thread(target=self._post, args=(version, features, found), daemon=True)
        self._thread.start()
        self._thread.join(self._deadline)
        took = time.perf_counter() - began
        self.seconds += took
        if not found:
            raise ExchangeFailedError(f"no answer in {1000 * self._deadline:.0f} ms")
        if isinstance(found[0], Exception):
            raise ExchangeFailedError(str(found[0]))
        actions = read_actions(found[0], (len(features), size))
        self.last_seconds = took
        return actions

    def _post(self, version: str, features: Tensor, found: list[bytes | Exception]) -> None:
        sent = {"name": "features", "datatype": "FP32", "shape": list(features.shape)}
        data = {**sent, "data": features.flatten().tolist()}
        body = json.dumps({"inputs": [data], "outputs": [{"name": "action"}]}).encode()
        path, headers = f"{self._path}/versions/{version}/infer", {"Content-Type": "application/json"}
        try:
            found.append(self._client.request("POST", path, body, headers, seconds=self._deadline).body)
        except Exception as error:
            found.append(error)


class RemotePolicy(Policy):
    """A pulled policy that asks for its actions.

    Args:
        file: With the features, and with what an action means; its weights are not used.
        version: That is asked.
        client: Who asks.
    """

    def __init__(self, file: PolicyFile, version: str, client: ActionClient) -> None:
        super().__init__(file.manifest, {})
        self._version, self._client = version, client

    @torch.no_grad()
    def action_of(self, features: Tensor) -> Tensor:
        """The service's answer `[..., A]` to features `[..., F]`: student, teacher, and weight where there is one."""
        # A number that is not finite is the student's mistake, which the guards of the run see to, not a request's.
        rows, size = features.reshape(-1, features.shape[-1]).cpu().nan_to_num(), self.scale.size
        found = self._client.ask(self._version, rows, size) if len(rows) else rows.new_zeros(0, size)
        return found.to(features.device).view(*features.shape[:-1], size)


def read_actions(body: bytes, shape: tuple[int, int]) -> Tensor:
    """Read an inference's answer: actions of a shape, all within -1 and 1.

    Raises:
        ExchangeFailedError: Where it is anything else.
    """
    try:
        (output,) = parse(body.decode())["outputs"]
        named, data = (output["name"], output["datatype"], output["shape"]), output["data"]
        numbers = all(type(value) in (int, float) for value in data)
        actions = torch.tensor(data, dtype=torch.float32).view(shape)
    except (ValueError, LookupError, TypeError, RuntimeError, OverflowError) as error:
        raise ExchangeFailedError(f"its answer is no inference ({type(error).__name__})") from None
    if named != ("action", "FP32", list(shape)) or not numbers:
        raise ExchangeFailedError(f"its answer is not the action of shape {list(shape)} in FP32")
    if not bool((actions.abs() <= 1 + OVERSHOOT).all()):  # nor is a number that is not finite
        raise ExchangeFailedError("its answer holds actions beyond [-1, 1]")
    return actions
