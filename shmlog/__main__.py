"""python -m shmlog: the command line."""

import sys

from shmlog.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
