#!/usr/bin/env python
"""Trains and evaluates; the same as detectron2's tools/train_net.py, with HyperNet.

See hypernet_d2/cli/train.py.
"""

import sys

from hypernet_d2.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
