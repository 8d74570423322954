"""Files, folders, progress bars, signals and worker processes.

Inside: `files` writes a file whole or not at all, `locks` keeps a second process out of a folder, `run_folders` opens
    and resumes run folders, `strict_json` reads JSON that strangers wrote, `interruption` ends a run in order,
    `pool` gives orders to worker processes, `workers` is what each of these needs.
To extend: add a module for each new kind of file or output; nothing here knows of distillation.
Imports: `errors` alone.
Imported by: every package.
"""
