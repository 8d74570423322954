"""Following a policy that a service has: the client's side of `rltemp serve`.

Imports `training` and below; `agents` and `cli` use it.
"""
