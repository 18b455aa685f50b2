"""`python -m harmony_diffusion.cli` is `harmony`."""

import sys

from harmony_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main())
