"""The command line: options as dataclasses, and one module a group of commands.

To add a command: write its dataclass and enter it into `main.COMMANDS`. Sees everything; nobody imports it.
"""
