"""`python -m proxyd` is `proxyd`."""

import sys

from proxyd.cli import main

if __name__ == "__main__":
    sys.exit(main())
