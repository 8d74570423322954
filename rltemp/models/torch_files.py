"""Torch's own files (`.pt`, `.pth.tar`, `.ckpt` and the like): tensors by name out of a stranger's pickle.

`torch.load(weights_only=True)` runs no code of a file. What it does not stop is stopped here: a file that unpacks to
any amount, a `bytearray` as large as the file says, and tuples of tuples that take for ever to hash.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rltemp.errors import ArtifactRefusedError, one_line

# Before this release a crafted file could corrupt memory or run code in spite of weights_only=True
# (CVE-2025-32434, CVE-2026-24747).
SAFE_TORCH_LOAD = "2.10"
MAX_PICKLE_BYTES = 16 * 2**20  # a tensor's entry takes about 200 bytes
MAX_DIRECTORY_BYTES = 4 * 2**20  # of a zip archive; Python's reader takes ten times as much to hold it
SHARED_TUPLES = 32
WRAPPING_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "ema",
    "model_ema",
    "state_dict_ema",
    "module",
)
"""Under which training scripts put a network's state dict; of several, the first of these is read."""


def read_state_dict(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """Return the dense tensors by name that a torch file holds, by themselves or under one of `WRAPPING_KEYS`.

    Args:
        file: Open for reading; its size is for the caller to check, see `expanded_bytes`.
        name: What messages call it.

    Raises:
        ArtifactRefusedError: Where it is anything else, or this torch cannot read such files safely.
    """
    if torch.__version__ < SAFE_TORCH_LOAD:
        raise ArtifactRefusedError(
            f"{name}: torch {torch.__version__} can be made to run code from such a file. Use torch 2.10 or "
            "later, or a .safetensors file"
        )
    try:
        _check_instructions(file)
        # torchvision's and timm's scripts put their options, a Namespace, beside the weights; it is names with values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols and the like: the answer here is yes or no
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes can make an unpickler raise anything
        raise ArtifactRefusedError(
            f"{name} is not a torch file of tensors alone ({reason(error)}). Save the network's "
            "state_dict() by itself, or as .safetensors"
        ) from error
    content = _unwrapped(content)
    if not isinstance(content, dict) or not all(_is_weight(*item) for item in content.items()):
        raise ArtifactRefusedError(
            f"{name} holds no state dict, but {_in_words(content)}; needed are names with dense tensors, by themselves "
            f"or under one of {', '.join(WRAPPING_KEYS)}"
        )
    return dict(content)


def _unwrapped(content: Any) -> Any:
    """What stands under the usual keys of a training's checkpoint, which may lie in each other."""
    for _ in WRAPPING_KEYS:
        found = [
            content[key] for key in WRAPPING_KEYS if isinstance(content, dict) and isinstance(content.get(key), dict)
        ]
        if not found:
            break
        content = found[0]
    return content


def _in_words(content: Any) -> str:
    """What a file holds instead of tensors."""
    if not isinstance(content, dict) or not content:
        return f"a {type(content).__name__}"
    keys = [one_line(str(key))[:40] for key in list(content)[:8]]
    return f"the keys {', '.join(keys)}{', ...' if len(content) > 8 else ''}"


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip archive, once its directory is known to be of a sane size: it is read whole.

    Raises:
        ValueError: Where the directory is larger than `MAX_DIRECTORY_BYTES`.
        zipfile.BadZipFile: Where it is no archive.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 2**17))  # as far as an archive's last records can reach
    tail = file.read()
    file.seek(0)
    # The size as the archive's last record has it, and as the record before it has it for large archives.
    for mark, begin, end in ((b"PK\x05\x06", 12, 16), (b"PK\x06\x06", 40, 48)):
        place = tail.rfind(mark)
        size = int.from_bytes(tail[place + begin : place + end], "little") if place >= 0 else 0
        if MAX_DIRECTORY_BYTES < size != 2**32 - 1:
            raise ValueError(f"the archive's directory has {size:,} bytes; needed: {MAX_DIRECTORY_BYTES:,} at most")
    return zipfile.ZipFile(file)


def expanded_bytes(path: Path) -> int:
    """The bytes of the file, or of what it unpacks to: torch files are zip archives, compressed or not."""
    packed = path.stat().st_size
    try:
        with path.open("rb") as file, open_archive(file) as archive:
            return max(packed, sum(entry.file_size for entry in archive.infolist()))
    except Exception:  # no archive, or a damaged one, which its reader refuses
        return packed


def reason(error: Exception) -> str:
    """What a parser says, without torch's advice on how to run the file's code anyway."""
    if needed := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for the Python object {needed[1]}"
    if "Weights only load failed" in str(error):
        return "it holds something else"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _check_instructions(file: BinaryIO) -> None:
    """Raise ValueError where following the file's pickles could allocate what it likes or never end."""
    tuples: set[int] = set()
    fetched, is_tuple = 0, False
    argument: Any
    for pickled in _pickles(file):
        for instruction, argument, _ in pickletools.genops(pickled):
            kind = instruction.name
            if kind in ("GLOBAL", "STACK_GLOBAL", "INST") and "bytearray" in str(argument or "bytearray"):
                raise ValueError(f"GLOBAL {'.'.join(str(argument).split())}")
            if kind in ("BINPUT", "LONG_BINPUT"):
                (tuples.add if is_tuple else tuples.discard)(argument)
            elif kind in ("BINGET", "LONG_BINGET") and argument in tuples:
                # A tuple twice in a tuple, and that twice in the next, takes for ever to hash.
                fetched += 1
                if fetched > SHARED_TUPLES:
                    raise ValueError(f"it uses tuples again more than {SHARED_TUPLES} times")
                is_tuple = True
            else:
                is_tuple = kind in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")


def _pickles(file: BinaryIO) -> Iterator[BinaryIO]:
    """Every pickle that torch will follow: those named so in an archive, else the five at the beginning of the file."""
    mark = file.read(4)
    file.seek(0)
    if mark == b"PK\x03\x04":  # as torch tells them apart
        with open_archive(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl"):
                    yield io.BytesIO(archive.open(entry).read(MAX_PICKLE_BYTES))
    else:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        yield from [head] * 5  # a magic number, the protocol, the system, the object, the names of its storages
    file.seek(0)


def _is_weight(name: Any, value: Any) -> bool:
    """Whether this is a name with a dense tensor; torch files can also hold sparse and meta tensors."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
