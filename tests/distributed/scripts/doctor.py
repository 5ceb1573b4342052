"""`distlr doctor --quick --json` on each rank."""

import sys

from distlr.cli.main import main

sys.exit(main(["doctor", "--quick", "--json"]))
