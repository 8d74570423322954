"""The same as `rltemp serve`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
