"""Runs under a policy that a service has (`rltemp serve`): the client's side, over urllib3 (the extra `remote`).

`rule` holds the temperature rule; `served_model` reads and checks what a service says; `poller` asks on a thread;
`http_client` is the one place with HTTP. Imports `training` and below; `agents` and `cli` use it.
"""

from rltemp.remote.rule import RemoteRule, remote_method

__all__ = ["RemoteRule", "remote_method"]
