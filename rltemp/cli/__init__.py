"""The command line: a module for every command or group of commands.

Inside: `main` finds the command and turns an error into one line and an exit code; `distill`, `compare` and the others
    hold a command's options as a dataclass, and dispatch.
To extend: write the dataclass of the command and enter it into `COMMANDS` of `main`.
Imports: `agents`, `integrations`, `report`, `service` and below.
Imported by: nobody.
"""
