"""The temperature controller as a service: Open Inference Protocol v2 over HTTP; needs `pip install 'rltemp[serve]'`.

`tensors` is the wire format, `models` and `repository` what is served, `app` the routes, `commands` the command line.
Nothing in the package's core imports this.
"""
