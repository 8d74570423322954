"""`rltemp write-teacher`: the likeliest classes of a language model, as a data set on disk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from rltemp.cli.console import say
from rltemp.io.own_code import own_code
from rltemp.io.progress import Bar
from rltemp.models.library_networks import saved_network
from rltemp.runs.teacher_files import read_tokens, refuse_files, write_teacher
from rltemp.training.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class WriteTeacher(RunOptions):
    """Ask a language model for its likeliest classes after every token of a text, and write them to a folder.

    TeacherTokens of rltemp.runs.teacher_files reads it as a data set; a Controller takes it in place of logits.
    """

    model: tyro.conf.Positional[str]
    """The folder of a causal language model, as transformers' save_pretrained wrote it."""
    text: tyro.conf.Positional[Path]
    """A text in UTF-8, which the tokenizer in that folder reads; or tokens [N, T], a file of NumPy's (.npy)."""
    out: Path = Path("teacher")
    """The folder to write; it must be empty."""
    length: int = 512
    """Tokens of a sequence; the text is cut into as many as it fills."""
    count: int = 64
    """How many classes of a token are kept."""
    batch_size: int = 8
    """Sequences at once."""
    device: str = "cpu"
    """Where the model runs, as in cuda."""

    def run(self) -> None:
        """Write the folder."""
        refuse_files(self.out)
        folder = self.model.removeprefix("hf:")
        model = saved_network(folder, "AutoModelForCausalLM").eval()
        tokens = read_tokens(self.text, folder, self.length)
        with own_code(f"--device {self.device}"):
            model = model.to(torch.device(self.device))
        with Bar("teacher") as bar:
            write_teacher(model, tokens, self.out, self.count, self.batch_size, bar)
        size = sum(file.stat().st_size for file in self.out.glob("*.bin"))
        say(f"Wrote {shlex.quote(str(self.out))}: {len(tokens)} sequences of {tokens.shape[1]} tokens, {size:,} bytes.")
