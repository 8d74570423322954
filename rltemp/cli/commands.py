"""The commands by name.

A command is a function of its `options`, a dataclass that tyro reads; or a dataclass with a method `run`. To add one:
write it into a module of this package and enter it into `COMMANDS`. The module is imported when the command is asked
for, so that `rltemp --help` waits for no library.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Args:
        place: Its module in `rltemp.cli`, and its name there.
        purpose: What it does.
        examples: Words behind `rltemp`, for its help.
        common: The options that its help explains first, by name without dashes.
    """

    place: str
    purpose: str
    examples: tuple[str, ...] = ()
    common: tuple[str, ...] = ()


COMMANDS = {
    "demo": Command(
        "demo:Demo",
        "teacher, policy, student and comparison, once, on a small task",
        ("demo", "demo --task wine --seeds 16 --out runs/wine"),
        ("task", "seeds", "updates", "out"),
    ),
    "train-teacher": Command(
        "train_teacher:TrainTeacher",
        "train a task's teacher, write its weights",
        ("train-teacher --task imagefolder:PATH --teacher resnet20 --out runs/t",),
        ("task", "teacher", "teacher-epochs", "teacher-learning-rate", "device", "out"),
    ),
    "train-policy": Command(
        "train_policy:train_policy",
        "learn a temperature policy and export it",
        ("train-policy --task digits --out runs/p", "train-policy --task my_task.py:make_task --workers 4"),
        ("task", "student", "teacher", "epochs", "updates", "workers", "out"),
    ),
    "distill": Command(
        "distill:distill",
        "train one student under a rule or a policy file",
        ("distill --task digits --rule universal", "distill --rule runs/p/policy.safetensors --seed 3 --out runs/d"),
        ("task", "rule", "seed", "student", "epochs", "out"),
    ),
    "check": Command(
        "compare:check",
        "tell in a minute whether to use a policy on your task",
        ("check --task my_task.py:make_task", "check --task wine --rule runs/p/policy.safetensors --seeds 64"),
        ("task", "rule", "seeds", "epochs", "learning-rate", "workers", "out"),
    ),
    "compare": Command(
        "compare:compare",
        "compare rules over many students, paired by seed",
        ("compare --rules fixed:4 dtkd universal --seeds 64", "compare --tasks digits wine --rules 'fixed:1|2|4'"),
        ("task", "rules", "seeds", "against", "student", "epochs", "workers", "out"),
    ),
    "study": Command(
        "compare:study",
        "tell whether a policy wins, over what, and by which part of it",
        ("study --task digits --rules runs/p/policy.safetensors --out runs/s",),
        ("task", "rules", "only", "seeds", "workers", "out"),
    ),
    "explain": Command(
        "compare:explain",
        "show why a policy sets the temperatures it sets",
        ("explain --task digits --rules runs/p/policy.safetensors --out runs/why",),
        ("task", "rules", "seeds", "importance-seeds", "out"),
    ),
    "report": Command(
        "report:ReportCommand",
        "print a finished comparison's tables: Markdown, LaTeX, CSV, HTML",
        ("report runs/c", "report runs/c --format latex --out table.tex"),
        ("FOLDER", "format", "out"),
    ),
    "serve": Command(
        "serve:Serve",
        "serve rules and policies over HTTP, for runs in other processes",
        ("serve --port 8000", "serve --models mine=runs/p/policy.safetensors", "serve --learn mine --state runs/s"),
        ("host", "port", "models", "token-file", "learn", "state"),
    ),
    "policy show": Command(
        "policy_files:PolicyShow",
        "check a policy file, print what it says of itself",
        ("policy show universal", "policy show runs/p/policy.safetensors"),
        ("FILE",),
    ),
    "policy import": Command(
        "policy_files:PolicyImport",
        "make a policy file of SB3's weights, safely",
        ("policy import --reference fixed:4 --out policy.safetensors model.zip",),
        ("FILE", "features", "reference", "arch", "activation", "out"),
    ),
    "policy export": Command(
        "policy_files:PolicyExport",
        "write a policy for hosts without rltemp",
        ("policy export --format onnx universal",),
        ("FILE", "format", "out"),
    ),
    "write-teacher": Command(
        "write_teacher:WriteTeacher",
        "write a language model's likeliest classes for a text",
        ("write-teacher MODEL-FOLDER text.txt --out runs/teacher", "write-teacher MODEL-FOLDER tokens.npy --count 32"),
        ("MODEL", "TEXT", "length", "count", "batch-size", "device", "out"),
    ),
    "rules": Command(
        "listings:Rules", "list every rule and divergence, or all of one", ("rules", "rules dtkd"), ("NAME",)
    ),
    "methods": Command("listings:Methods", "list every method: a rule with its paper's loss weights", ("methods",)),
    "completion": Command("listings:Completion", "print a script by which bash completes all this", ("completion",)),
}
"""Every command, in the order of the help."""


def group(name: str) -> list[str]:
    """The commands that begin with this word and go on, as `policy show` does."""
    return [command for command in COMMANDS if command.startswith(f"{name} ")]
