"""What can go wrong, as three exceptions; the command line turns each into one line and an exit code.

Library code raises these where the value is used. A message says what was needed, what came, and what to do.
"""

from __future__ import annotations


class BadInputError(ValueError):
    """A value, name or file that the user gave cannot be used as it is (exit code 2)."""


class ArtifactRefusedError(BadInputError):
    """A policy or weight file failed one of the checks that run before it is used (exit code 3)."""


class TrainingDivergedError(RuntimeError):
    """A training run produced numbers that are not finite and was stopped (exit code 4)."""


def one_line(message: str) -> str:
    """The message without line breaks and terminal codes: parts of it may come from the file."""
    return "".join(letter if letter.isprintable() else "?" for letter in message)[:2000]
