#!/usr/bin/env python
"""Detects in images, folders, videos or from a webcam, and draws the result.

See hypernet_d2/cli/detect.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypernet_d2_cli import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run("hypernet_d2.cli.detect_engine"))
