"""The same as `rltemp train-policy`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["train-policy", *sys.argv[1:]])
