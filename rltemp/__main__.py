"""`python -m rltemp` is the command `rltemp`."""

from rltemp.cli.main import main

if __name__ == "__main__":
    main()
