"""The temperature controller as a service: Open Inference Protocol v2 over HTTP; needs `pip install 'rltemp[serve]'`.

Inside: `app` holds the routes, `tensors` the wire format, `models` and `repository` what is served, `commands` the
    command line.
To extend: add a route to `app`, and its test against a running service.
Imports: `loading`, `agents` for learning, and below.
Imported by: `cli` alone.
"""
