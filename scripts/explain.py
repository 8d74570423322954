"""The same as `rltemp explain`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["explain", *sys.argv[1:]])
