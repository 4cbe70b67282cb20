#!/usr/bin/env python
"""Trains and evaluates; the same as detectron2's tools/train_net.py, with HyperNet.

See hypernet_d2/cli/train.py.
"""

import sys

from hypernet_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("hypernet_d2.cli.train"))
