"""`rltemp distill`: what the command prints."""

from __future__ import annotations

from rltemp.cli.console import logs_of, next_command, say, show_next
from rltemp.io.run_folders import showing
from rltemp.runs.distill import DistillOptions


def distill(options: DistillOptions) -> None:
    """`rltemp distill`."""
    result, out = options.run(), options.folder()
    if result is None:  # another process of the same training writes and prints
        return
    with showing(out):
        if options.learn:
            say(f"{len(result['runs'])} runs; records: {result['controller']['records']}.")
        lost = f" It loses {result['test_loss']:.4f} nats a token." if "test_loss" in result else ""
        say(
            f"Student {result['student']} under {options.rule}: {100 * result['test_accuracy']:.2f} % test "
            f"accuracy (its teacher {100 * result['teacher_accuracy']:.2f} %).{lost}"
        )
    rules = dict.fromkeys(["fixed:4", "dtkd", *([] if options.controller else [options.rule])])
    show_next(out, logs_of(out), next_command("compare", options.task_words(), out, "--rules", *rules))
