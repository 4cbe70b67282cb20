"""train_net.py with a tiny data set registered, for tests that need processes of their own.

``$TINY_VOC`` is the folder that ``helpers.write_voc`` filled. Spawned workers import this file
too, and so find the set registered.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet_d2.data import register_voc_style  # noqa: E402
from hypernet_d2_cli import run  # noqa: E402

register_voc_style("tiny", os.environ["TINY_VOC"], "all", ["square", "bar"])

if __name__ == "__main__":
    sys.exit(run("hypernet_d2.cli.train"))
