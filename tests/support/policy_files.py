"""Policy files for tests: sound ones, and ones forged byte by byte."""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rltemp.policy.manifest import PolicyAction, PolicyFeature

FEATURES = (
    PolicyFeature(name="progress", version=1, unit="fraction", mean=0.5, std=0.25),
    PolicyFeature(name="entropy", version=2, unit="nats", mean=1.25, std=0.1),
    PolicyFeature(name="margin", version=1, unit="deviations", mean=-0.3, std=1.5),
)


KNOWN = {feature.name: (feature.version, feature.unit) for feature in FEATURES}


def make_weights(*widths: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        weights[f"{index}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        weights[f"{index}.bias"] = torch.randn(outputs, generator=generator)
    return weights


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "weights": make_weights(3, 16, 2),
        "activation": "tanh",
        "features": FEATURES,
        "action": PolicyAction(ratio=4.0, minimum=0.5, maximum=20.0),
        "reference": "fixed:4",
        "provenance": {"task": "digits", "seed": 7, "gain": 0.0056},
        "created_with": {"rltemp": "0.1.0"},
        **changes,
    }


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, the manifest inside it and the tensors' bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["rltemp"]), data[8 + length :]


def pack(header: str | bytes, body: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


def compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def forge(
    path: Path,
    manifest: dict[str, Any] | str,
    tensors: dict[str, Any] | None = None,
    body: bytes | None = None,
) -> None:
    """Rewrite the file with another manifest, other tensor entries or other bytes, hashes recomputed."""
    header, original, old_body = unpack(path.read_bytes())
    body = old_body if body is None else body
    if isinstance(manifest, dict):
        if manifest.get("weights_sha256") == original["weights_sha256"]:
            shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
            manifest["weights_sha256"] = hashlib.sha256(compact(shapes).encode() + body).hexdigest()
        manifest = compact(manifest)
    metadata = {"rltemp": manifest, "rltemp_sha256": hashlib.sha256(manifest.encode()).hexdigest()}
    old = {name: entry for name, entry in header.items() if name != "__metadata__"}
    text = json.dumps({"__metadata__": metadata, **(old if tensors is None else tensors)}, separators=(",", ":"))
    path.write_bytes(pack(text, body))


def manifest_of(path: Path) -> dict[str, Any]:
    return unpack(path.read_bytes())[1]
