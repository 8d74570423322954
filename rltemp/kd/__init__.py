"""Knowledge distillation itself: signals and temperatures, divergences, losses, and the method that joins them.

Inside: `signals` holds what a rule sees and what it answers, `divergences` the distances between two distributions,
    `losses` the loss of a sample, `method` the whole loss of a training step.
To extend: write a divergence as a function of tensors and enter it at the foot of `divergences`.
Imports: `io` and below.
Imported by: every package above, `rules` first.
"""
