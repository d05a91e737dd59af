"""`python -m linear_eval`: the same as `mgd-ssl linear`, for torchrun."""

import sys

from mgd_ssl.cli import main

if __name__ == "__main__":
    sys.exit(main(["linear", *sys.argv[1:]]))
