"""Knowledge distillation itself: signals and temperatures, divergences, losses, and the method that joins them.

Pure functions of tensors. A new divergence is a function and an entry at the foot of `divergences`. Imports `errors`
alone of rltemp (and the strict JSON reader, for options in names); everyone may import it.
"""
