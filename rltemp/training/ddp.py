"""`torchrun -m rltemp distill`: several processes train one student, each on its share of every batch.

Every process draws the same batch, runs both networks on its share of the rows, and gathers everybody's logits. So the
rule, the loss and every check of numbers see the whole batch, and any method works as it does in one process. Its
gradient goes on into a process's own rows, and `DistributedDataParallel` averages the weights' gradients.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rltemp.errors import BadInputError, TrainingStoppedError
from rltemp.io.interruption import SIGNALS

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""For the first process's preparations: it may have a teacher to train. A process that is gone is noticed at once."""


@dataclass(frozen=True)
class Team:
    """The processes of one training.

    Args:
        rank: This one's number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @property
    def each(self) -> str:
        """For messages about one process's share."""
        return "" if self.size == 1 else f" in each of {self.size} processes"

    def share(self, batch: int) -> slice:
        """This process's rows of a batch.

        Raises:
            BadInputError: Where the batch cannot be shared out evenly.
        """
        if batch % self.size:
            raise BadInputError(
                f"a batch of {batch} cannot be shared evenly by {self.size} processes; give a --batch-size that is a "
                f"multiple of {self.size}"
            )
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def gathered(self, own: Tensor) -> Tensor:
        """Everybody's rows, `[B, C]`, of which one's own, `[B / size, C]`, keep their graph.

        Their gradient is multiplied by the number of processes, of whose gradients on the weights the mean is taken.
        """
        if self.size == 1:
            return own
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own.detach().contiguous())
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * self.size)  # type: ignore[no-untyped-call]
        rows[self.rank] = own
        return torch.cat(rows)

    def joined(self, student: nn.Module) -> nn.Module:
        """The student's forward, after whose backward every process has the mean of all gradients.

        On GPUs batch norms take their statistics of the whole batch; on the CPU of each process's rows, and keep the
        first process's.
        """
        if self.size == 1:
            return student
        if next(student.parameters()).is_cuda:
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(student)

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives, which the first process does before the others."""
        found = work() if self.first else None
        self.agreed(True)
        return work() if found is None else found

    def agreed(self, value: bool) -> bool:
        """What the first process says."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.uint8)
        dist.broadcast(told, 0)
        return bool(told.item())


ALONE = Team()


def started_together() -> bool:
    """Whether `torchrun` has started this process as one of several."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and os.environ.get("WORLD_SIZE", "1") != "1"


@contextlib.contextmanager
def assembled(device: str) -> Iterator[Team]:
    """The team that `torchrun` has started this process in; one of one where it has not.

    All but the first say nothing, leave signals to it, and end when it ends.

    Args:
        device: cpu or cuda.

    Raises:
        TrainingStoppedError: In the first, where another one is gone.
    """
    if not started_together():
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    team = Team(dist.get_rank(), dist.get_world_size())
    try:
        with contextlib.nullcontext() if team.first else _quiet():
            yield team
    except RuntimeError as error:
        if "peer" not in str(error):  # as gloo says that a connection is closed
            raise
        if not team.first:
            sys.exit(1)  # the first one has said why
        raise TrainingStoppedError(
            "another process of this training is gone. The same command goes on from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
