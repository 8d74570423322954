"""The same as `rltemp compare`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
