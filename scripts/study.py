"""The same as `rltemp study`, for those who look for a script."""

import sys

from rltemp.cli.main import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
