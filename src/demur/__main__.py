"""Entry point of `python -m demur`."""

import sys

from demur.cli import main

if __name__ == "__main__":
    sys.exit(main())
