"""`python -m maru` is the `maru` command."""

from maru.cli import main

if __name__ == "__main__":
    main()
