"""`rltemp report`: the tables of a finished comparison, in the format of a page or a paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rltemp.cli.console import say
from rltemp.errors import BadInputError
from rltemp.io.files import atomic_write
from rltemp.io.run_folders import CONFIG, RESULT, read_json, showing
from rltemp.report.formats import FORMATS, Format, stored_tables
from rltemp.training.options import RunOptions

COMPARISONS = ("compare", "study")


@dataclass(frozen=True, kw_only=True)
class ReportCommand(RunOptions):
    """Print the tables of a finished comparison or study as Markdown, LaTeX, CSV or HTML; nothing is trained."""

    folder: tyro.conf.Positional[Path]
    """The folder of a finished compare or study."""
    format: Format = "markdown"
    """How the tables are written; csv has a line for each method and baseline."""
    out: Path | None = None
    """A file to write, rather than to print; one that is there is not overwritten."""

    def run(self) -> None:
        """Print or write the tables."""
        for name in (CONFIG, RESULT):
            if not (self.folder / name).is_file():
                raise BadInputError(f"{self.folder} holds no {name}; needed: the folder of a finished compare or study")
        if (command := read_json(self.folder / CONFIG).get("command")) not in COMPARISONS:
            raise BadInputError(f"{self.folder} is a run of {command!r}; needed: one of compare or study")
        if self.out is not None and self.out.exists():
            raise BadInputError(f"{self.out} exists and is not overwritten; choose another --out")
        with showing(self.folder):
            text = FORMATS[self.format](stored_tables(read_json(self.folder / RESULT)))
        if self.out is None:
            say(text.rstrip("\n"))
        else:
            atomic_write(self.out, text.encode())
            say(f"Wrote {self.out}.")
