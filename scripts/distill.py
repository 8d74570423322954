"""The same as `rltemp distill`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
