"""Plugs: the temperature controller in the training loops of others; docs/integrations/ has a page for each.

    from rltemp.integrations import Controller

    controller = Controller("universal")                         # or "dtkd", "runs/p/policy.safetensors", a Method
    loss = controller.loss(student_logits, teacher_logits, labels, progress).mean()

Importing this package imports no host: each has a module of its own.
"""

from rltemp.integrations.contract import Controller, HostVersionWarning, tested_with

__all__ = ["Controller", "HostVersionWarning", "tested_with"]
