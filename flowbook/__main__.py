"""``python -m flowbook``: the command line (flowbook/cli)."""

import sys

if __name__ == "__main__":
    try:
        from flowbook.cli import main
    except KeyboardInterrupt:  # a moment later it would be told by `main`
        sys.exit(130)
    sys.exit(main())
