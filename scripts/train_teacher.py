"""The same as `rltemp train-teacher`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["train-teacher", *sys.argv[1:]])
