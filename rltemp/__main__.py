"""`python -m rltemp` is the command `rltemp`."""

from rltemp.cli import main

if __name__ == "__main__":
    main()
