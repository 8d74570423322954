"""What can go wrong, as exceptions; the command line turns each into one line and an exit code.

Library code raises these where the value is used. A message says what was needed, what came, and what to do.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class RltempError(BaseException):
    """All that rltemp raises on purpose. Each of its errors is one of Python's own as well, as in `ValueError`.

    It is no `Exception` by itself, because one of its errors, `InterruptedRunError`, must not be one.

    Attributes:
        exit_code: With which the command line ends.
    """

    exit_code = 1


class BadInputError(RltempError, ValueError):
    """A value, name or file that the user gave cannot be used as it is."""

    exit_code = 2


class ArtifactRefusedError(BadInputError):
    """A policy, weight or checkpoint file failed one of the checks that run before it is used."""

    exit_code = 3


class TrainingStoppedError(RltempError, RuntimeError):
    """A training run cannot go on, and stopped with its last checkpoint in place."""

    exit_code = 4


class TrainingDivergedError(TrainingStoppedError):
    """A training run produced numbers that are not finite and was stopped."""


class ExchangeFailedError(RltempError, RuntimeError):
    """A service gave no whole and good answer in time; the text says why. It may work another time."""


class RequestRefusedError(RltempError, RuntimeError):
    """A service says that a request is a mistake (a 4xx status): it would say so again."""


class CompilingFailedError(RltempError, RuntimeError):
    """A step cannot be compiled, or not here; the text says why. Without a compiler it works as well, more slowly."""


class InterruptedRunError(RltempError, KeyboardInterrupt):
    """A signal asked the process to stop; the exit code is 128 + the signal's number.

    A `KeyboardInterrupt`, so that code that catches every `Exception` does not take it for a failure of its own.

    Args:
        number: The signal.
        state: What is saved, in words.
    """

    def __init__(self, number: signal.Signals, state: str = "") -> None:
        super().__init__(f"stopped by {number.name}{': ' if state else ''}{state}")
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def of_this_run(what: str) -> Iterator[None]:
    """Within, a state that does not fit is refused: a checkpoint of another `what`.

    Raises:
        ArtifactRefusedError: With what it lacks or has otherwise.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as error:
        raise ArtifactRefusedError(
            f"the checkpoint is of another {what}: {' '.join(str(error).split())[:300]}. Give the options that it was "
            "made with, or begin with --fresh"
        ) from error


def one_line(message: str) -> str:
    """The message without line breaks and terminal codes: parts of it may come from a stranger's file."""
    return "".join(letter if letter.isprintable() else "?" for letter in message)[:2000]
