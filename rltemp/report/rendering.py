"""Fills the templates in `templates/`: the words of every report are there, the numbers come from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rltemp.io.files import atomic_write
from rltemp.io.versions import versions


def write_template(path: Path, template: str, **values: Any) -> Path:
    """Fill a template and write the file; return its path.

    Every value is somebody's input: it is escaped in a template whose name ends in `.html`.

    Args:
        path: Of the file.
        template: A file of `templates/`.
        values: By the names that the template uses; `versions` is there already.

    Raises:
        BadInputError: Where the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("rltemp.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = environment.get_template(template).render(values, versions=named)
    atomic_write(path, text.encode("utf-8", "replace"))
    return path
