"""`python -m linear_eval`: the same as `mgd-ssl linear`, for torchrun."""

import sys

from linear_eval.command import main
from mgd_ssl.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:], prog="python -m linear_eval")))
