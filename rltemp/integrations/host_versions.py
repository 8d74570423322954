"""Whether the installed version of a host is one that its integration was tested with."""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, version

from rltemp.errors import BadInputError
from rltemp.optional_imports import import_library


class HostVersionWarning(UserWarning):
    """The installed version of a host lies outside of those that its integration was tested with."""


def tested_with(host: str, version_range: str) -> None:
    """Warn where the host's installed version is not one that its integration was tested with.

    Args:
        host: The distribution's name, as pip has it.
        version_range: As pip has it: `">=5.0,<6"`.

    Raises:
        BadInputError: Where the host is not installed.
    """
    try:
        found = version(host)
    except PackageNotFoundError:
        raise BadInputError(
            f"this integration needs {host} ({version_range}), which is not installed: pip install {host}"
        ) from None
    specifiers = import_library("packaging.specifiers", "this integration", "integrations")
    if not specifiers.SpecifierSet(version_range).contains(found, prereleases=True):
        warnings.warn(
            f"{host} {found} is installed; rltemp's integration was tested with {host} {version_range}",
            HostVersionWarning,
            stacklevel=3,
        )
