"""Runs under a policy that a service has (`rltemp serve`): the client, over urllib3 (the extra `remote`).

Inside: `rule` holds the temperature rule, `served_model` reads and checks what a service says, `poller` asks on a
    thread, `http_client` is the one place with HTTP.
To extend: add a kind of request to `http_client`; no training step waits for an answer.
Imports: `training` and below.
Imported by: `experiments`, `report`, `agents`, `service` and `cli`.
"""

from rltemp.remote.rule import RemoteRule, remote_method

__all__ = ["RemoteRule", "remote_method"]
