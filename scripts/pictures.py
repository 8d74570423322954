"""Draw the two pictures of docs/compare.md from a finished demo: its plot, and the top of its page in a browser.

    rltemp demo --out runs/demo
    python scripts/pictures.py runs/demo/compare

Needs Chromium, and Playwright (pip install 'rltemp[browser]').
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
SIZE = {"width": 1280, "height": 1200}
"""Of the page's part that is shown, in pixels."""


def screenshot(page: Path, picture: Path) -> None:
    """The top of a page, as a screen shows it."""
    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=sandbox)
        window = browser.new_page(viewport=SIZE)
        window.goto(page.resolve().as_uri())
        window.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Write docs/demo.png and docs/report.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the demo's comparison")
    folder = parser.parse_args().folder
    shutil.copyfile(folder / "picture.png", DOCS / "demo.png")
    screenshot(folder / "report.html", DOCS / "report.png")


if __name__ == "__main__":
    main()
