"""Integrations: the temperature controller in training loops of other libraries.

    from rltemp.integrations import Controller

    controller = Controller("universal")             # or "dtkd", "runs/p/policy.safetensors", a Method
    loss = controller.loss(student_logits, teacher_logits, labels, progress=step / steps).mean()

Inside: `contract` holds `Controller`, which all others use, `own_runs` and `folder_learner` how it learns, and
    `host_versions` a check; every host library has a module of its own and a page in docs/integrations/. Importing
    this package imports no host.
To extend: write a module for the host, test it against the host itself, and add its page.
Imports: `loading` and below; `agents` where a controller learns.
Imported by: `cli` alone.
"""

from rltemp.integrations.contract import Controller
from rltemp.integrations.host_versions import HostVersionWarning, tested_with

__all__ = ["Controller", "HostVersionWarning", "tested_with"]
