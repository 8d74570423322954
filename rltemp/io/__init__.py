"""Files, folders and the console: what everything else writes and prints with.

Files are written whole or not at all (`files`), one process at a time (`locks`), into run folders (`run_folders`);
JSON of strangers is read strictly (`strict_json`). Knows nothing of distillation and imports nothing of rltemp but
`rltemp.errors`. Everyone may import it.
"""
