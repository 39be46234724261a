"""``python -m flowbook``: the command line (flowbook/cli)."""

import sys

from flowbook.cli import main

if __name__ == "__main__":
    sys.exit(main())
