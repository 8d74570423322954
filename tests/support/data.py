"""Tables of numbers, requests and messages that tests go through: JSON files beside the tests, each with its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def table(name: str, key: str = "rows") -> Any:
    """The entry `key` of `tests/<room>/data/<file>.json`, for a name `<room>/<file>`."""
    room, file = name.split("/")
    return json.loads((Path(__file__).parents[1] / room / "data" / f"{file}.json").read_text())[key]
