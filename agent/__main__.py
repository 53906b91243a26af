"""`python -m agent` is the same program as `impound`."""

from __future__ import annotations

import sys

from agent.start import main

if __name__ == "__main__":
    sys.exit(main())
