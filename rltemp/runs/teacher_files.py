"""A teacher's likeliest classes for every token of a text, in a folder: written once, read as a data set.

    write_teacher(teacher, tokens, "teacher-64", count=64)
    dataset = TeacherTokens("teacher-64")  # dataset[0]["input_ids"], ["teacher_ids"], ["teacher_log_probs"], ...

A folder has one file for each tensor, row by row without a header, and `manifest.json` with its sizes and checksums,
which is written last. At K = 64 a token takes 412 bytes. Nothing is in memory but the sequences that are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.io.files import atomic_write
from rltemp.io.own_code import own_code
from rltemp.kd.sparse_teacher import TAIL_SIZES, SparseTeacher
from rltemp.optional_imports import import_library

FORMAT = "rltemp-teacher-1"
MANIFEST = "manifest.json"
_SIZES = ("sequences", "length", "count", "classes")


def write_teacher(
    model: Callable[[Tensor], Any],
    tokens: Tensor,
    folder: str | Path,
    count: int = 64,
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> None:
    """Ask a teacher for its likeliest classes after every token, and write them with their tails.

    Args:
        model: From tokens `[B, T]` to logits `[B, T, V]`, or to an object or a mapping that has them as `logits`, as a
            model of transformers does; in eval mode, on any device.
        tokens: `[N, T]` integers, sequences of one length.
        folder: Made, if it is not there; it must be empty.
        count: K, how many classes of a token are kept.
        batch_size: Sequences a call.
        on_batch: Told how many sequences are written, and how many there are: a progress bar.

    Raises:
        BadInputError: Where the tokens are no such tensor, the folder has files, there are fewer classes than K, or
            the teacher's logits are no numbers.
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel():
        raise BadInputError(f"tokens must be integers [N, T]; got {tokens.dtype} of shape {tuple(tokens.shape)}")
    if batch_size < 1:
        raise BadInputError(f"batch_size must be 1 or more; got {batch_size}")
    folder = Path(folder)
    refuse_files(folder)
    classes, digests = 0, {name: hashlib.sha256() for name in _kinds(0)}
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        logits = _logits(model, batch)
        classes = logits.shape[-1]
        if not 1 <= count <= classes:
            raise BadInputError(f"count must be 1 to {classes}, the teacher's classes; got {count}")
        teacher = SparseTeacher.of_logits(logits, count)
        try:
            teacher.check(classes)
        except BadInputError as error:
            raise BadInputError(
                f"the model's logits of the sequences from {start} on cannot be used: {error}"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in _columns(batch, teacher).items():
            data = values.tobytes()
            digests[name].update(data)
            with (folder / f"{name}.bin").open("ab") as file:
                file.write(data)
        if on_batch is not None:
            on_batch(start + len(batch), len(tokens))
    sizes = dict(zip(_SIZES, (*tokens.shape, count, classes), strict=True))
    checksums = {name: digest.hexdigest() for name, digest in digests.items()}
    manifest = {"format": FORMAT, **sizes, "sha256": checksums}
    atomic_write(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def read_tokens(file: Path, tokenizer: str, length: int) -> Tensor:
    """Tokens `[N, T]` of a file: of NumPy's as they are, of a text in sequences of `length`, the last ones left out.

    Args:
        file: A text in UTF-8, or `.npy`.
        tokenizer: The folder that transformers' tokenizer was saved to.
        length: T, of a text.

    Raises:
        BadInputError: Where the file cannot be read, or the text has fewer tokens than one sequence.
    """
    if length < 1:
        raise BadInputError(f"length must be 1 or more; got {length}")
    try:
        if file.suffix == ".npy":
            return torch.from_numpy(np.load(file, allow_pickle=False))
        text = file.read_text("utf-8")
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(f"{file} cannot be read as a text in UTF-8, or as an array (.npy): {error}") from None
    library = import_library("transformers", "a text", "transformers")
    with own_code(f"the tokenizer in {tokenizer}"):
        found = library.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
        tokens = torch.tensor(found(text, verbose=False)["input_ids"])
    count = len(tokens) // length
    if not count:
        raise BadInputError(f"{file} has {len(tokens)} tokens, fewer than one sequence of {length}")
    return tokens[: count * length].view(count, length)


def refuse_files(folder: Path) -> None:
    """Refuse a folder that has files in it.

    Raises:
        BadInputError: As it says.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder} is there and not empty; a teacher is written to a folder of its own")


class TeacherTokens(Dataset[dict[str, Tensor]]):
    """What `write_teacher` wrote, memory-mapped: an item is a sequence and its teacher.

    An item has `input_ids` `[T]`, `teacher_ids` `[T, K]`, `teacher_log_probs` `[T, K]` (bfloat16) and `teacher_tail`
    `[T, 6]`; `sparse_teacher` makes a `SparseTeacher` of a batch of them.

    Args:
        folder: That was written to.
        verify: Read everything once and compare the checksums.

    Attributes:
        classes: V, of the teacher.

    Raises:
        ArtifactRefusedError: Where the manifest is missing or is none, or a file has another size or checksum.
    """

    def __init__(self, folder: str | Path, verify: bool = True) -> None:
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            sequences, length, count, self.classes = (int(manifest[name]) for name in _SIZES)
            checksums, known = dict(manifest["sha256"]), manifest["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ArtifactRefusedError(
                f"{folder} has no {MANIFEST} of {FORMAT}: write it with write_teacher, to its end"
            )
        self._arrays = {}
        for name, (kind, width) in _kinds(count).items():
            path, shape = folder / f"{name}.bin", (sequences, length, width)
            size, needed = path.stat().st_size if path.is_file() else 0, int(np.prod(shape)) * np.dtype(kind).itemsize
            if size != needed:
                raise ArtifactRefusedError(f"{path} has {size} bytes, needed: {needed}; write the teacher again")
            if verify and _digest(path) != checksums.get(name):
                raise ArtifactRefusedError(f"{path} has another checksum than its manifest; write the teacher again")
            self._arrays[name] = np.memmap(path, kind, "r", shape=shape)

    def __len__(self) -> int:
        return len(self._arrays["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        item = {name: torch.from_numpy(np.array(array[index])) for name, array in self._arrays.items()}
        item["teacher_log_probs"] = item["teacher_log_probs"].view(torch.bfloat16)
        item["input_ids"] = item["input_ids"].squeeze(-1).long()
        return item


def sparse_teacher(batch: Mapping[str, Tensor]) -> SparseTeacher:
    """The teacher of a batch of items, `[..., T]`."""
    return SparseTeacher(batch["teacher_ids"], batch["teacher_log_probs"], batch.get("teacher_tail"))


def _kinds(count: int) -> dict[str, tuple[str, int]]:
    """Every file, the type of its numbers, and how many a token has."""
    return {
        "input_ids": ("<i4", 1),
        "teacher_ids": ("<i4", count),
        "teacher_log_probs": ("<i2", count),  # the bits of bfloat16
        "teacher_tail": ("<f4", TAIL_SIZES[-1]),
    }


@torch.no_grad()
def _logits(model: Callable[[Tensor], Any], batch: Tensor) -> Tensor:
    device = next((one.device for one in getattr(model, "parameters", list)()), batch.device)
    with own_code("the teacher"):
        found = model(batch.to(device))
    if isinstance(found, Mapping):
        found = found["logits"]
    logits = getattr(found, "logits", found)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != batch.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInputError(f"a teacher's logits must be [B, T, V] for tokens {tuple(batch.shape)}; got {got}")
    return logits


def _columns(tokens: Tensor, teacher: SparseTeacher) -> dict[str, Any]:
    assert teacher.tail is not None
    tensors = (tokens, teacher.ids, teacher.log_probs.bfloat16().view(torch.int16), teacher.tail)
    kinds = _kinds(0).items()
    return {name: one.cpu().numpy().astype(kind) for (name, (kind, _)), one in zip(kinds, tensors, strict=True)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
