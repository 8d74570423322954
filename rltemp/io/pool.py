"""Worker pools: other processes that train, `--workers` of this machine or those of a Ray cluster.

A worker is given the work once, then one order after another. An order stands for itself: what a worker had when it was
lost is given to another.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, cast

import torch

from rltemp.errors import BadInputError, InterruptedRunError, TrainingStoppedError
from rltemp.io.interruption import kept_handlers, requested
from rltemp.io.workers import Handout, WorkerFailure, begin_worker, deaf, fetched, sent
from rltemp.optional_imports import import_library

RETRIES = 2
"""How often an order is tried again after its worker was lost."""
SECONDS = 10.0
"""In which a cluster's address has to answer."""

Work = Callable[..., Any]
"""What a worker does with an order; it reaches each worker once, and may be large."""
Order = tuple[Any, ...]
"""The arguments of the work, which are small."""

_work: Work | None = None  # in a process of `ProcessPool`: what it was started with


class WorkerPool:
    """Workers behind `_submit`."""

    def run(self, work: Work, orders: Sequence[Order]) -> Iterator[tuple[int, Any]]:
        """Yield the place of each order and what the work made of it, as they are done.

        Raises:
            RltempError: As the work raises it.
            TrainingStoppedError: Where a worker raised anything else, or was lost with the same order again and again.
                The text says what the worker said.
            InterruptedRunError: Where a signal came, which may have ended workers too.
        """
        waiting, lost = dict(enumerate(orders)), 0
        while waiting:
            before = len(waiting)
            # Where nothing was done, one at a time: an order that ends its worker then takes no other along.
            for places in [[place] for place in waiting] if lost else [list(waiting)]:
                for place, outcome in self._tried(work, {place: orders[place] for place in places}):
                    del waiting[place]
                    yield place, outcome
            lost = lost + 1 if len(waiting) == before else 0
            if waiting and (number := requested()) is not None:  # a SIGTERM to the whole group
                raise InterruptedRunError(number)
            if lost > RETRIES:
                name = _name(next(iter(waiting.values())))
                raise TrainingStoppedError(
                    f"{name} could not be trained in {lost} tries: each time its worker was lost. Where memory is "
                    "short, take fewer --workers"
                )

    def _tried(self, work: Work, orders: Mapping[int, Order]) -> Iterator[tuple[int, Any]]:
        """What was made of each order, but for those whose worker was lost."""
        futures = {self._submit(work, order): place for place, order in orders.items()}
        try:
            for future in as_completed(futures):
                if not (future.cancelled() or isinstance(future.exception(), BrokenProcessPool)):
                    yield futures[future], _outcome(future, orders[futures[future]])
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, work: Work, order: Order) -> Future[Any]:
        raise NotImplementedError

    def close(self) -> None:
        """End all workers at once."""
        raise NotImplementedError


class ProcessPool(WorkerPool):
    """Processes on this machine, started when there is work for them, each with the threads of this one.

    Args:
        count: 1 or more.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._executor: ProcessPoolExecutor | None = None
        self._work: Work | None = None
        self._handout: Handout
        self._others = {*multiprocessing.active_children()}

    def _submit(self, work: Work, order: Order) -> Future[Any]:
        if self._work != work:
            self.close()
        for _ in range(2):
            if self._executor is None:
                self._work, self._handout = work, Handout(work, self._count)
                start, context = (self._handout.address, torch.get_num_threads()), multiprocessing.get_context("spawn")
                self._executor = ProcessPoolExecutor(self._count, context, initializer=_begin, initargs=start)
            try:
                with deaf():
                    return self._executor.submit(_done, sent(order))
            except BrokenProcessPool:  # a process was lost; all others of its executor have ended
                self.close()
        raise TrainingStoppedError("the workers end as soon as they are started; try --workers 1")

    def close(self) -> None:
        """End all workers at once; they write nothing."""
        if self._executor is not None:
            self._handout.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in {*multiprocessing.active_children()} - self._others:
                process.terminate()
        self._executor = self._work = None


class RayPool(WorkerPool):
    """The tasks of a Ray cluster, which gives those of a lost node to another one.

    Args:
        address: As `ray.init` takes it: `auto`, `HOST:PORT` of the head, or `ray://HOST:PORT`.
        gpus: That an order needs.

    Raises:
        BadInputError: Where Ray is missing, or nothing answers there.
    """

    def __init__(self, address: str, gpus: float = 0) -> None:
        where = check_ray(address)
        self._ray = import_library("ray", "--ray", extra="ray")
        try:
            with kept_handlers():  # Ray has one of its own for SIGTERM, which would leave without a word
                self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise _unreached(address, where, error) from error
        settings = {"num_cpus": torch.get_num_threads(), "num_gpus": gpus}
        self._done = self._ray.remote(**settings, max_retries=RETRIES)(_done_on_node)
        self._shipped: tuple[Work, Any] | None = None

    def _submit(self, work: Work, order: Order) -> Future[Any]:
        if self._shipped is None or self._shipped[0] != work:
            self._shipped = work, self._ray.put(sent(work))
        # Within a list it stays a reference, which a node's process follows once and not for every order.
        task = self._done.remote([self._shipped[1]], sent(order), torch.get_num_threads())
        return cast("Future[Any]", task.future())

    def close(self) -> None:
        """Leave the cluster, which ends what it does for this process."""
        self._ray.shutdown()


def check_ray(address: str) -> str:
    """Where the cluster of an address is; what can be known at once is refused before anything is trained for it.

    Raises:
        BadInputError: Where Ray is missing, or nothing answers there.
    """
    import_library("ray", "--ray", extra="ray")
    where = address
    try:
        where = _found(address)
        host, colon, port = where.removeprefix("ray://").rpartition(":")
        if colon and port.isdecimal():  # Ray itself tries for minutes, and then ends the process
            socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise _unreached(address, where, error) from error
    return where


def _unreached(address: str, where: str, error: Exception) -> BadInputError:
    return BadInputError(f"--ray {address}: no Ray cluster can be reached there ({where}: {error})")


def _found(address: str) -> str:
    """Where Ray looks: for `auto` what RAY_ADDRESS says, or what `ray start` left on this machine, if anything."""
    if address != "auto":
        return address
    left = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (left.read_text("utf-8").strip() if left.is_file() else address)


def open_pool(workers: int, ray: str | None, gpus: float) -> contextlib.AbstractContextManager[WorkerPool | None]:
    """The pool that `--workers` or `--ray` asks for; None where this process does the work.

    The workers end with the context.
    """
    if ray is not None:
        return contextlib.closing(RayPool(ray, gpus))
    return contextlib.closing(ProcessPool(workers)) if workers > 1 else contextlib.nullcontext()


def _outcome(future: Future[Any], order: Order) -> Any:
    error = future.exception()  # raised here, a rule's SystemExit would end this process without a word
    if error is not None:
        first, _, rest = str(error).partition("\n")
        said = f"{type(error).__name__}: {first}. Its worker said: {error.__cause__ or rest or first}"
        raise TrainingStoppedError(f"{_name(order)} could not be trained: {said}") from error
    outcome = future.result()
    if isinstance(outcome, WorkerFailure):
        raise outcome.error from RuntimeError(outcome.trace)
    return outcome


def _name(order: Order) -> str:
    return " ".join(map(str, order[:2]))


def _carry_out(work: Work, order: Order) -> Any:
    """In a worker; errors that are meant for people come back as they are."""
    try:
        return sent(work(*order))
    except BaseException as error:  # a SystemExit of a user's code too, which would end the worker without a word
        if (failure := WorkerFailure.of(error)) is None:
            raise
        return sent(failure)


def _begin(address: Any, threads: int) -> None:
    """In a process of `ProcessPool`, which ends with its parent, however that ends."""
    global _work
    begin_worker(threads)
    _work = fetched(address)


def _done(order: Order) -> Any:
    assert _work is not None
    return _carry_out(_work, order)


def _done_on_node(shipped: list[Any], order: Order, threads: int) -> Any:
    torch.set_num_threads(threads)
    return _carry_out(_fetched(shipped[0]), order)


@functools.lru_cache(maxsize=1)
def _fetched(reference: Any) -> Any:
    return import_library("ray", "a Ray cluster's node", extra="ray").get(reference)
