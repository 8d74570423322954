"""The temperature controller as a server: Open Inference Protocol v2 over HTTP; needs `pip install 'rltemp[serve]'`.

`app` is the ASGI application, `limits` the middleware around it, `routes` and `experience` what it answers, `tensors`
the wire format, `served_models` and `repository` what is served, `learning` a policy that is learned meanwhile, `host`
the process. A further route is a router that `app.Service` is given. Only `rltemp.cli` imports this package.
"""
