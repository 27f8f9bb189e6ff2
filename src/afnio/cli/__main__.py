"""`python -m afnio.cli`."""

import sys

from afnio.cli import main

if __name__ == "__main__":
    sys.exit(main())
