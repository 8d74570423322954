"""The temperature controller as a server: Open Inference Protocol v2 over HTTP; needs `pip install 'rltemp[serve]'`.

Inside: `app` is the ASGI application, `limits` the middleware around it, `routes` and `experience` what it answers,
    `tensors` the wire format, `served_models` and `repository` what is served, `learning` a policy that is learned
    meanwhile, `host` the process.
To extend: write a router, give it to `app.Service`, and test it against a running service.
Imports: `loading`, `agents` for learning, and below.
Imported by: `cli` alone.
"""
