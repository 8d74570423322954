"""The prose of a page: what is left without its code, tables, pictures and links."""

from __future__ import annotations

import re

_LEFT_OUT = (
    (r"^---\n.*?^---\n", re.DOTALL),  # front matter
    (r"^```.*?^```$", re.DOTALL),
    (r"<!--.*?-->", re.DOTALL),
    (r"^(\||#|:::|--8<--| {4}\w+:).*$", 0),  # tables, headings, what a tool writes there
    (r"!\[[^\]]*\]\([^)]*\)", 0),
)


def sentences(page: str) -> list[str]:
    """Every sentence of a page; a line of a list is one, whether it ends in a full stop or not."""
    for pattern, more in _LEFT_OUT:
        page = re.sub(pattern, "", page, flags=re.MULTILINE | more)
    page = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"^ *([-*]|\d+\.) ", "\n", page, flags=re.MULTILINE)
    paragraphs = [" ".join(one.split()) for one in re.split(r"\n\s*\n", page)]
    plain = [re.sub(r"[`*_]", "", one) for one in paragraphs if one]
    return [sentence for one in plain for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z0-9\"'(\[])", one)]


def text(page: str) -> str:
    """The sentences as one text, each with a full stop."""
    return " ".join(f"{one.rstrip('.:;!? ')}." for one in sentences(page))
