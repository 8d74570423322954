"""Large libraries are imported only where they are used; one message for those that do not import."""

from __future__ import annotations

import importlib
from typing import Any

from rltemp.errors import BadInputError


def import_library(module: str, needed_by: str, extra: str = "") -> Any:
    """Return the imported `module`, such as `torchvision.datasets`.

    Args:
        module: Its name, with dots.
        needed_by: The option, task or command that needs it.
        extra: The extra of rltemp that installs it; empty where every installation has it.

    >>> import_library("math", "an example").tau > 6
    True
    >>> import_library("no_such_library.part", "rltemp serve", "serve")
    Traceback (most recent call last):
    rltemp.errors.BadInputError: rltemp serve needs no_such_library; pip install 'rltemp[serve]'

    Raises:
        BadInputError: Where the library is missing, or there but broken.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    # A torchvision built for another torch fails with a RuntimeError on the first import, an AttributeError
    # on the second, and an OSError where a shared library is gone.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        if extra and isinstance(error, ModuleNotFoundError) and error.name == library:
            raise BadInputError(f"{needed_by} needs {library}; pip install 'rltemp[{extra}]'") from None
        raise BadInputError(
            f"{needed_by} needs {library}, which cannot be imported ({type(error).__name__}: {error}). "
            f"Install the {library} that fits your torch (https://pytorch.org/get-started), or choose another"
        ) from error
