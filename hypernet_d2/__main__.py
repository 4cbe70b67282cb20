"""``python -m hypernet_d2 COMMAND ...`` is the command ``hypernet-d2``."""

import sys

from hypernet_d2_cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m hypernet_d2"))
