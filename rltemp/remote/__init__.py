"""The client of `rltemp serve`: a rule that follows a policy which a service has.

Inside: `rule` is the served policy as a temperature rule, `addresses` reads the service's URL.
To extend: add a kind of request to the client; a training step waits for no answer.
Imports: `training` and below.
Imported by: `experiments`, `report`, `agents`, `service` and `cli`.
"""
