"""`python -m livetape` is the `livetape` command."""

from __future__ import annotations

import sys

from livetape.cli import main

if __name__ == "__main__":
    sys.exit(main())
