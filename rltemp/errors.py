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

        try:
            rltemp.compare("digits", rules)
        except rltemp.RltempError as error:
            sys.exit(error.exit_code)

    Attributes:
        exit_code: With which the command line ends.
    """

    exit_code = 1


class BadInputError(RltempError, ValueError):
    """A value, name or file that the user gave cannot be used as it is.

    >>> from rltemp import load_rule
    >>> load_rule("dtdk")
    Traceback (most recent call last):
    rltemp.errors.BadInputError: unknown rule 'dtdk': did you mean 'dtkd'? Known: ...
    """

    exit_code = 2


class ArtifactRefusedError(BadInputError):
    """A policy, weight or checkpoint file failed one of the checks that run before it is used.

        try:
            controller = rltemp.Controller(downloaded)
        except rltemp.ArtifactRefusedError as error:
            print(error)  # which check, and the way out

    Nothing of such a file is run.
    """

    exit_code = 3


class TrainingStoppedError(RltempError, RuntimeError):
    """A training run cannot go on, and stopped with its last checkpoint in place.

        try:
            rltemp.train_policy("digits", out="runs/p", on_collapse="stop")
        except rltemp.TrainingStoppedError as error:
            print(error)

    The text says why, and what to do.
    """

    exit_code = 4


class TrainingDivergedError(TrainingStoppedError):
    """A training run produced numbers that are not finite and was stopped.

        try:
            rltemp.distill("digits", out="runs/d", learning_rate=1e6)
        except rltemp.TrainingDivergedError:
            rltemp.distill("digits", out="runs/d2", learning_rate=0.02)

    Runs of several students go on without those that diverge.
    """


class ExchangeFailedError(RltempError, RuntimeError):
    """A service gave no whole and good answer in time; the text says why. It may work another time."""


class RequestRefusedError(RltempError, RuntimeError):
    """A service says that a request is a mistake (a 4xx status): it would say so again."""


class CompilingFailedError(RltempError, RuntimeError):
    """A step cannot be compiled, or not here; the text says why. Without a compiler it works as well, more slowly."""


class InterruptedRunError(RltempError, KeyboardInterrupt):
    """A signal asked the process to stop; the exit code is 128 + the signal's number.

    A `KeyboardInterrupt`, so that code that catches every `Exception` does not take it for a failure of its own.

    >>> InterruptedRunError(signal.SIGTERM, "step 7 is saved")
    InterruptedRunError('stopped by SIGTERM: step 7 is saved')

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
