"""The commands by name.

A command is a function of its `options`, a dataclass that tyro reads; or a dataclass with a method `run`. To add one:
write it into a module of this package and enter it into `COMMANDS`. The module is imported when the command is asked
for, so that `rltemp --help` waits for no library.
"""

from __future__ import annotations

COMMANDS = {
    "demo": ("demo:Demo", "teacher, policy, student and comparison, once, on a small task"),
    "train-teacher": ("train_teacher:TrainTeacher", "train a task's teacher, write its weights"),
    "train-policy": ("train_policy:train_policy", "learn a temperature policy and export it"),
    "distill": ("distill:distill", "train one student under a rule or a policy file"),
    "compare": ("compare:compare", "compare rules over many students, paired by seed"),
    "study": ("compare:study", "tell whether a policy wins, over what, and by which part of it"),
    "explain": ("compare:explain", "show why a policy sets the temperatures it sets"),
    "serve": ("serve:Serve", "serve rules and policies over HTTP, for runs in other processes"),
    "policy show": ("policy_files:PolicyShow", "check a policy file, print what it says of itself"),
    "policy import": ("policy_files:PolicyImport", "make a policy file of SB3's weights, safely"),
    "policy export": ("policy_files:PolicyExport", "write a policy for hosts without rltemp"),
    "rules": ("listings:Rules", "list every temperature rule and every divergence"),
    "methods": ("listings:Methods", "list every method: a rule with its paper's loss weights"),
}
"""Every command: where it is in `rltemp.cli`, and what it does."""
