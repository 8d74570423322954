"""`--ray ADDRESS`: an existing Ray cluster's nodes train the cells, in a results folder that all of them reach.

Ray starts the processes, sends the problem to each node once, and gives the task of a lost node to another one.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rltemp.errors import BadInputError
from rltemp.experiments.crews import RETRIES, Outcome, Work, have
from rltemp.experiments.result_cache import Job
from rltemp.io.interruption import kept_handlers
from rltemp.optional_imports import import_library

KNOCK = 10.0
"""Seconds in which a cluster's address has to answer."""


class Cluster:
    """A crew of the tasks of a Ray cluster.

    Args:
        address: As `ray.init` takes it: `auto`, `HOST:PORT` of the head, or `ray://HOST:PORT`.
        gpus: That a cell needs.

    Raises:
        BadInputError: Where Ray is missing, or nothing answers there.
    """

    def __init__(self, address: str, gpus: float = 0) -> None:
        self._ray = import_library("ray", "--ray (pip install 'rltemp[ray]')")
        try:
            _knock(address)
            with kept_handlers():  # Ray has one of its own for SIGTERM, which would leave without a word
                self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise BadInputError(f"--ray {address}: no Ray cluster can be reached there ({error})") from error
        settings = {"num_cpus": torch.get_num_threads(), "num_gpus": gpus}
        self._have = self._ray.remote(**settings, max_retries=RETRIES, retry_exceptions=True)(_have)
        self._shipped: tuple[Work, Any] | None = None

    def submit(self, work: Work, folder: Path, job: Job) -> Future[Outcome]:
        """As `Crew.submit`."""
        if self._shipped is None or self._shipped[0] != work:
            self._shipped = work, self._ray.put(work)
        # Within a list it stays a reference, which a node's process follows once and not for every cell.
        task = self._have.remote([self._shipped[1]], folder.resolve(), job.key, job.order, torch.get_num_threads())
        future: Future[Outcome] = task.future()
        return future

    def close(self) -> None:
        """Leave the cluster, which ends what it does for this process."""
        self._ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _knock(address: str) -> None:
    """Ray itself knocks for minutes, and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK).close()


def _have(shipped: list[Any], folder: Path, key: Mapping[str, Any], order: tuple[Any, ...], threads: int) -> Outcome:
    """On a node."""
    torch.set_num_threads(threads)
    return have(_unpacked(shipped[0]), folder, key, order)


@functools.lru_cache(maxsize=1)
def _unpacked(reference: Any) -> Work:
    work: Work = import_library("ray", "a Ray cluster's node").get(reference)
    return work
