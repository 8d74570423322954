"""`rltemp policy export`: a policy as a file for hosts without rltemp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rltemp.cli.console import say
from rltemp.errors import BadInputError
from rltemp.integrations.export import OUTPUTS, SUFFIXES, write
from rltemp.loading import imports_code
from rltemp.training.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class PolicyExport(RunOptions):
    """Write a policy, or another rule, as a program for hosts without rltemp: torch.export's, or ONNX."""

    file: tyro.conf.Positional[str]
    """A policy file, the name of a shipped policy, or a rule's, as in dtkd:reference=2."""
    format: Literal["torch", "onnx"] = "torch"
    """torch: torch.export's .pt2; onnx: for ONNX Runtime and others."""
    out: Path | None = None
    """The file to write; policy.pt2 or policy.onnx by default."""

    def run(self) -> None:
        """Write the program."""
        if imports_code(self.file):
            raise BadInputError(f"{self.file!r} would import a module; needed: a policy file or a rule's name")
        out = self.out or Path("policy").with_suffix(SUFFIXES[self.format])
        write(self.file, out, self.format)
        say(f"Wrote {out}: student_logits, teacher_logits [B, C], progress [] to {', '.join(OUTPUTS)} [B].")
