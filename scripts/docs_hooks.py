"""What `make docs` writes from the code: the list of rules, and every option of every command.

mkdocs calls `on_page_markdown` for each page; a page says with a comment where the text goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rltemp.cli.commands import COMMANDS
from rltemp.cli.dispatch import command_of
from rltemp.cli.help import page
from rltemp.rules import catalogue

PICTURE = "![Differences in accuracy and learned temperatures](picture.png)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every `<!-- generated: NAME -->` replaced by what the code says.

    A report that a study wrote is shown without its picture, which stands in the study's folder.
    """
    markdown = markdown.replace(PICTURE, "")
    for name, text in TEXTS.items():
        comment = f"<!-- generated: {name} -->"
        if comment in markdown:
            markdown = markdown.replace(comment, "\n".join(text()))
    return markdown


def _entries(entries: Sequence[catalogue.Entry]) -> Iterator[str]:
    """A heading for each entry, what it does, and a list of its facts."""
    for entry in entries:
        yield f"### `{entry.name}`\n\n{entry.summary}\n"
        yield f"- **Options**: `{entry.options or 'none'}`"
        yield from (f"- **{key}**: {_escaped(text)}" for key, text in entry.facts.items())
        yield ""


def _escaped(text: str) -> str:
    """Formulas as they stand: nothing in them is Markdown. Addresses become links."""
    for sign in "\\*_<|":
        text = text.replace(sign, f"\\{sign}")
    return re.sub(r"https://[^\s;,)]+[^\s;,).]", lambda found: f"<{found[0]}>".replace("\\", ""), text)


def _commands() -> Iterator[str]:
    for name in COMMANDS:
        yield f"### `rltemp {name}`\n\n```text\n{page(name, command_of(name)[0], everything=True)}\n```\n"


TEXTS: dict[str, Callable[[], Iterator[str]]] = {
    "rules": lambda: _entries(catalogue.rules()),
    "divergences": lambda: _entries(catalogue.divergences()),
    "commands": _commands,
}
"""What a page can ask for."""
