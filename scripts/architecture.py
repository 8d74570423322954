"""Draw which package imports which: writes a Mermaid graph of the imports into docs/architecture.md.

    python scripts/architecture.py            # draw it anew
    python scripts/architecture.py --check    # write nothing; exit code 1 where the page shows another graph

An arrow means "imports". Arrows that follow from others are left out: where `cli` imports `report` and `report` imports
`kd`, there is none from `cli` to `kd`.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by scripts/architecture.py -->", "<!-- end of the drawing -->"

Graph = dict[str, set[str]]
"""Whom each imports, by name."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name, `rltemp.kd.losses`; `rltemp.kd` is the package's `__init__`."""
    files = [*ROOT.glob("rltemp/*.py"), *ROOT.glob("rltemp/*/*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return dict(sorted(names.items()))


@cache
def named(file: Path) -> list[str]:
    """What a file imports, anywhere in it: modules, and names from modules as `module.name`."""
    found = list[str]()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_graph() -> Graph:
    """The modules that each module imports."""
    known = modules()
    return {
        module: {found for name in named(file) if (found := _module(name, known)) not in ("", module)}
        for module, file in known.items()
    }


def _module(name: str, known: dict[str, Path]) -> str:
    """The module of ours that an imported name is or is in; empty for a library's."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def package_graph() -> Graph:
    """The packages (and modules beside them) that each imports; the top `rltemp` itself is left out."""
    found: Graph = {}
    for module, imports in module_graph().items():
        if module not in ("rltemp", "rltemp.__main__"):
            found.setdefault(_room(module), set()).update(_room(name) for name in imports if name != "rltemp")
    return {room: others - {room} for room, others in found.items()}


def _room(module: str) -> str:
    return module.split(".")[1]


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that a longer way says too."""
    return {
        one: {other for other in others if not any(other in _reached(graph, via, one) for via in others - {other})}
        for one, others in graph.items()
    }


def _reached(graph: Graph, start: str, barred: str) -> set[str]:
    """Everything that `start` leads to without going through `barred`."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found - {barred}
        found |= new
        waiting += new
    return found


def drawing() -> str:
    """The graph in Mermaid, between the markers of the page."""
    arrows = [
        f"    {one} --> {other}" for one, others in sorted(reduced(package_graph()).items()) for other in sorted(others)
    ]
    return "\n".join([BEGIN, "```mermaid", "flowchart TD", *arrows, "```", END])


def main() -> int:
    """Write the drawing into the page, or tell whether it is there."""
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    drawn = before + drawing() + rest.partition(END)[2]
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(drawn, "utf-8")
    elif drawn != page:
        print("docs/architecture.md shows other imports than the code has: run python scripts/architecture.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
