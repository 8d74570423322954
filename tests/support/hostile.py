"""What a stranger may hand over: files that would run code, never end, or take all memory, as bytes by name.

Every payload makes the folder `marker` where it is run; `tests/project/test_hostile.py` gives each file to every door.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.data import table

SUFFIXES = (".pt", ".zip", ".bin", ".pkl")
"""Beside `.safetensors`, under which each is tried anyway."""


class Payload:
    """Unpickled without care, it makes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def archive(members: dict[str, bytes], packed: bool = False) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names given twice, which are meant
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as written:
            for name, data in members.items():
                written.writestr(name, data)
    return stream.getvalue()


def torch_file(content: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torch_archive(pickled: bytes) -> bytes:
    """What torch would save, with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(torch_file({}))) as honest:
        members = {name: honest.read(name) for name in honest.namelist()}
    return archive({name: pickled if name.endswith("data.pkl") else data for name, data in members.items()})


def tuple_bomb(levels: int = 70) -> bytes:
    """A dictionary whose key is a tuple of twice a tuple of twice ...: hashing it takes 2^levels steps."""
    return torch_archive(b"\x80\x02K\x01\x85q\x01" + b"h\x01h\x01\x86q\x01" * levels + b"}h\x01K\x01s.")


def memory_bomb(size: int = 2**36) -> bytes:
    """Asks for a bytearray filled with `size` zeros, which torch's careful loader allows."""
    number = b"\x8a\x05" + size.to_bytes(5, "little")
    return torch_archive(b"\x80\x02}X\x01\x00\x00\x00wc__builtin__\nbytearray\n" + number + b"\x85Rs.")


def sb3_archive(marker: Path, policy: bytes, **more: bytes) -> bytes:
    """What SB3's own loader would follow: pickles in `data`, base64 as SB3 has them."""
    pickled = base64.b64encode(pickle.dumps(Payload(marker))).decode()
    data = {"policy_class": {":type:": "x", ":serialized:": pickled}, "n_envs": 1}
    members = {"data": json.dumps(data).encode(), "policy.pth": policy, "_stable_baselines3_version": b"2.4.0"}
    return archive({**members, **more})


def sb3_weights(*widths: int, **more: Any) -> bytes:
    """A `policy.pth` of an MlpPolicy with such widths, and what is put beside."""
    state: dict[str, Any] = {}
    for place, (inside, out) in enumerate(pairwise(widths)):
        name = "action_net" if place == len(widths) - 2 else f"mlp_extractor.policy_net.{2 * place}"
        state |= {f"{name}.weight": torch.zeros(out, inside), f"{name}.bias": torch.zeros(out)}
    return torch_file({**state, "log_std": torch.zeros(widths[-1]), **more})


def directory_bomb() -> bytes:
    """A zip archive of hundreds of thousands of empty members, 46 bytes each in the file."""
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = 300_000
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count & 0xFFFF, count & 0xFFFF, count * len(entry), 4, 0)
    return b"PK\x03\x04" + entry * count + end


def safetensors(header: Any, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def tensor(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def numpy_objects(marker: Path) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, weights=np.array([Payload(marker)], dtype=object))
    return stream.getvalue()


def contents(marker: Path) -> dict[str, bytes]:
    """Every hostile file by name."""
    payload = Payload(marker)
    found = {f"pickle of protocol {number}": pickle.dumps(payload, number) for number in range(6)}
    found |= {name: text.encode() for name, text in table("project/hostile_texts").items()}
    found |= {
        "torch archive with a payload": torch_file({"0.weight": payload}),
        "old torch file with a payload": torch_file({"0.weight": payload}, zipped=False),
        "payload beside tensors": torch_file({"a": torch.zeros(3), "b": payload}),
        "payload under state_dict": torch_file({"state_dict": {"a": payload}}),
        "tuple bomb": tuple_bomb(),
        "memory bomb": memory_bomb(),
        "SB3 archive with a payload in data": sb3_archive(marker, sb3_weights(8, 3, 2)),
        "SB3 archive with a payload in policy.pth": sb3_archive(marker, pickle.dumps(payload)),
        "SB3 archive with a payload in a tensor's place": sb3_archive(marker, sb3_weights(8, 64, 64, 2, extra=payload)),
        "SB3 archive with an extra key": sb3_archive(marker, sb3_weights(8, 64, 64, 2, extra=torch.zeros(1))),
        "SB3 archive with numbers that are none": sb3_archive(
            marker, sb3_weights(8, 64, 64, 2, **{"action_net.bias": torch.tensor([float("nan"), 0.0])})
        ),
        "SB3 archive with a view of a number as 2^40": sb3_archive(
            marker, sb3_weights(8, 64, 64, 2, extra=torch.zeros(1).expand(2**40))
        ),
        "zip bomb": archive({"policy.pth": bytes(80 * 2**20), "data": b"{}"}, packed=True),
        "torch archive that unpacks to 5 GiB": lie_about_size(torch_file({"a": torch.zeros(3)}), 5 * 2**30),
        "zip with names that lead out": archive(
            {"../../MARKER/x": b"1", "/MARKER": b"1", str(marker): b"1", "..\\..\\x": b"1", "policy.pth": b""}
        ),
        "zip of half a million names": directory_bomb(),
        "numpy archive with a payload": numpy_objects(marker),
        "safetensors header of 2^40 bytes": struct.pack("<Q", 2**40) + b'{"a":1}',
        "safetensors header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
        "tensors over each other": safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        "tensor before the beginning": safetensors({"a": tensor([2], -8, 0)}, bytes(8)),
        "tensor of negative size": safetensors({"a": tensor([-2], 0, 8)}, bytes(8)),
        "tensor given twice": safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "tensor whose size overflows": safetensors({"a": tensor([2**33, 2**33], 0, 4)}, bytes(4)),
        "tensor that claims a terabyte": safetensors({"a": tensor([2**38], 0, 2**40)}, bytes(4)),
        "tensor with terminal codes in its name": safetensors({"\x1b]0;x\x07\x1b[2J\n": tensor([1], 0, 4)}, bytes(4)),
        "header of brackets": safetensors(b"[" * 100_000),
        "brackets": b"[" * 100_000,
        "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "integer of a million digits": b'{"seed":' + b"9" * 10**6 + b"}",
        "exponent of a million digits": b'{"seed":1e' + b"9" * 10**6 + b"}",
        "text of a megabyte": b'{"task": "' + b"x" * 2**20 + b'"}',
        "invalid UTF-8": b'{"task": "\xff\xfe"}',
        "UTF-16": '{"task": "toy"}'.encode("utf-16"),
        "byte-order mark and nothing": b"\xef\xbb\xbf",
        "nothing": b"",
        "zeros": bytes(2**20),
        "Python": f"import os\nos.mkdir({str(marker)!r})\n".encode(),
        "shell": f"#!/bin/sh\nmkdir {marker}\n".encode(),
        "PostScript": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%mkdir {marker}) (w) file\n".encode(),
        "picture of 50,000 x 50,000 pixels": png(50_000, 50_000),
        "picture of 10,000 x 10,000 pixels": png(10_000, 10_000),
        "picture of no pixels": png(0, 0),
    }
    return found


def png(width: int, height: int) -> bytes:
    """A picture that claims so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def lie_about_size(data: bytes, size: int) -> bytes:
    """The archive, whose directory says that its first member unpacks to so many bytes, as its zip64 field does."""
    changed = bytearray(data)
    place = data.index(b"PK\x01\x02")
    changed[place + 24 : place + 28] = min(size, 2**32 - 2).to_bytes(4, "little")
    return bytes(changed)


def special_files(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Makers of what is no plain file, by name; each takes the path to make."""
    (folder / "elsewhere").mkdir(exist_ok=True)
    return {
        "link to a device without end": lambda path: path.symlink_to("/dev/zero"),
        "link to nothing": lambda path: path.symlink_to(folder / "no such file"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to a file of somebody else": lambda path: path.symlink_to("/etc/passwd"),
        "link to a folder": lambda path: path.symlink_to(folder / "elsewhere"),
        "pipe that nobody writes to": os.mkfifo,
        "folder": Path.mkdir,
    }
