"""Draw how it works: writes docs/how-it-works.svg, without any library.

    python scripts/how_it_works.py

Boxes and arrows stand in the two tables below; a test holds the file to them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "how-it-works.svg"
WIDTH, HEIGHT = 940, 372
PLAIN, LEARNED = "#e8eef7", "#ffe9c7"
"""Fills: what every distillation has, and what is learned here."""


class Box(NamedTuple):
    """A box: its left upper corner and size in pixels, its lines of text (the first is bold) and its fill."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    fill: str = PLAIN


BOXES = (
    Box(20, 92, 104, 66, ("batch", "of samples")),
    Box(176, 52, 132, 60, ("teacher", "logits, frozen")),
    Box(176, 140, 132, 60, ("student", "logits")),
    Box(364, 92, 150, 66, ("features", "8 numbers a sample")),
    Box(566, 92, 150, 66, ("policy", "a few dozen weights"), LEARNED),
    Box(768, 80, 152, 90, ("each sample gets", "student temperature", "teacher temperature", "weight"), LEARNED),
    Box(768, 232, 152, 66, ("loss", "divergence, labels")),
    Box(364, 300, 150, 60, ("held-out samples", "is the student better?")),
    Box(566, 232, 150, 66, ("PPO", "only in train-policy"), LEARNED),
)

ARROWS = (
    ((124, 112), (176, 82)),
    ((124, 138), (176, 170)),
    ((308, 82), (364, 112)),
    ((308, 170), (364, 138)),
    ((514, 125), (566, 125)),
    ((716, 125), (768, 125)),
    ((844, 170), (844, 232)),
    ((242, 200), (242, 330), (364, 330)),
    ((514, 330), (641, 330), (641, 298)),
    ((641, 232), (641, 158)),
    ((768, 265), (744, 265), (744, 216), (282, 216), (282, 200)),
)
"""Corners of every arrow, in pixels; the head is at the last."""

WORDS = (
    (20, 28, "In every step of a student's training"),
    (526, 320, "reward"),
    (652, 200, "better policy"),
    (300, 234, "gradient"),
)
"""Words beside the arrows, and the title."""


def drawing() -> str:
    """The picture as SVG."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#1b2430">'
    )
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#44546a"/></marker></defs>'
    )
    title = "<title>How rltemp sets temperatures, and how the policy learns</title>"
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    words = [f'<text x="{x}" y="{y}" font-style="italic">{escape(text)}</text>' for x, y, text in WORDS]
    shapes = [*map(_arrow, ARROWS), *map(_box, BOXES)]
    return "\n".join([head, title, marker, ground, *shapes, *words, "</svg>", ""])


def _box(box: Box) -> str:
    middle, first = box.x + box.width / 2, box.y + box.height / 2 - 9 * (len(box.lines) - 1) + 5
    lines = [
        f'<text x="{middle:g}" y="{first + 18 * number:g}" text-anchor="middle" '
        f'font-weight="{"bold" if number == 0 else "normal"}">{escape(line)}</text>'
        for number, line in enumerate(box.lines)
    ]
    size = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
    return "".join([f'<rect {size} rx="8" fill="{box.fill}" stroke="#44546a"/>', *lines])


def _arrow(corners: tuple[tuple[int, int], ...]) -> str:
    points = " ".join(f"{x},{y}" for x, y in corners)
    return f'<polyline points="{points}" fill="none" stroke="#44546a" stroke-width="1.6" marker-end="url(#head)"/>'


if __name__ == "__main__":
    PICTURE.write_text(drawing(), "utf-8")
