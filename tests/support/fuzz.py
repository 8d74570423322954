"""Coverage-guided fuzzing of the readers, by atheris: `python tests/support/fuzz.py READER FOLDER -max_total_time=60`.

READER is a name of `READERS`; FOLDER gets the corpus and the file that is read. An exception that is none of the
project's own, five seconds or two gigabytes end it with an exit code; `tests/project/test_fuzz.py` runs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["rltemp", "json"]):
    from rltemp.cli.dispatch import parse
    from rltemp.errors import BadInputError
    from rltemp.io.run_folders import read_json
    from rltemp.loading import SHIPPED, load_method

GOOD = SHIPPED["universal"].read_bytes()
HEADER = GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")]
BODY = GOOD[8 + len(HEADER) :]
MANIFEST = json.loads(HEADER)["__metadata__"]["rltemp"].encode()
CONFIGURATION = {"command": "distill", "task": "toy", "epochs": 1, "learning_rate": 0.5, "rule": "dtkd:reference=2"}


def policy(data: bytes, file: Path) -> None:
    """A whole file, a header, or a manifest whose hash is right: the first byte chooses which it is."""
    kind, data = data[:1], data[1:]
    if kind == b"m":
        text = data.decode("latin-1")
        own = json.loads(HEADER)
        own["__metadata__"] = {"rltemp": text, "rltemp_sha256": hashlib.sha256(text.encode()).hexdigest()}
        data = json.dumps(own, separators=(",", ":")).encode()
        data += b" " * (-len(data) % 8)
    file.write_bytes(len(data).to_bytes(8, "little") + data + BODY if kind in (b"m", b"h") else data)
    load_method(str(file))


def configuration(data: bytes, file: Path) -> None:
    """A configuration file, as a command takes it."""
    file.write_bytes(data)
    read_json(file)
    options = parse("distill", ["--config", str(file)])
    load_method(options.rule)


READERS: dict[str, tuple[Callable[[bytes, Path], None], list[bytes]]] = {
    "policy": (policy, [b"w" + GOOD, b"h" + HEADER, b"m" + MANIFEST]),
    "configuration": (configuration, [json.dumps(CONFIGURATION).encode(), b"{}", b'{"seed": 1e3, "student": null}']),
}

NUMBERS = (None, True, -1, 0, 10**400, 1e308, -1e-320)
TEXTS = ("", "x" * 5000, "\ud800", "\x1b[2J", "a:b", "fixed:0")
STRANGE: tuple[object, ...] = (*NUMBERS, *TEXTS, [], {}, [[]])


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """Another input: mostly the same JSON with a value or a key exchanged, else what libFuzzer makes of the bytes."""
    generator = random.Random(seed)
    kind = data[:1] if data[:1] in (b"m", b"h") else b""
    try:
        value = json.loads(data[len(kind) :]) if generator.random() < 0.7 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return bytes(atheris.Mutate(data, most))
    return (kind + json.dumps(_changed(value, generator), separators=(",", ":"), sort_keys=True).encode())[:most]


def _changed(value: Any, generator: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or generator.random() < 0.1:
        return generator.choice(STRANGE)
    place = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    fate = generator.random()
    if fate < 0.1:
        del value[place]
    elif fate < 0.2 and isinstance(value, dict):
        value[generator.choice(("", "seed", "rule", "features", "x"))] = value.pop(place)
    else:
        value[place] = _changed(value[place], generator)
    return value


def main() -> None:
    """Fuzz the reader that the command line names."""
    read, seeds = READERS[sys.argv[1]]
    folder = Path(sys.argv[2])
    corpus, file = folder / "corpus", folder / "file.safetensors"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def once(data: bytes) -> None:
        with contextlib.suppress(BadInputError), contextlib.redirect_stdout(io.StringIO()):
            read(data, file)

    limits = ["-timeout=5", "-len_control=0", "-rss_limit_mb=2048", "-max_len=16384", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *sys.argv[3:]], once, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
