"""The command line: a module for every command or group of commands.

Inside: `main` turns an error into one line and an exit code, `dispatch` finds the command and reads its options;
    `distill`, `compare` and the others print what a command does.
To extend: write a command and enter it into `COMMANDS`.
Imports: `integrations`, `runs`, `service` and below.
Imported by: nobody.
"""
