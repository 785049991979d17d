"""`python -m crashtest` is the `crashtest` command."""

import sys

from crashtest.cli import main

if __name__ == "__main__":
    sys.exit(main())
