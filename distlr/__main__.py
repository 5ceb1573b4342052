"""`python -m distlr`: the command."""

import sys

from distlr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
