"""Installs what hypernet_d2 needs into the environment of the Python that runs this folder.

    python tools/set_up

tools/setup_env.sh calls it. Installed packages stay as they are, PyTorch above all. detectron2 is
taken from the first of

1. the environment;
2. ``DETECTRON2``: a wheel, an sdist or a checkout;
3. a wheel in the folders of pip's ``find-links``;
4. the public commit that hypernet_d2/__init__.py names, by git, or as an archive if git is missing.

If none of them has it, the set-up continues without; ``DETECTRON2=none`` does so on purpose.
A checkout is used as it is, without compiling, and nothing is written to it. The compiled part of
detectron2 holds deformable convolutions, operations on rotated boxes and a faster COCO evaluation;
``DETECTRON2_BUILD=1`` compiles it. ``DETECTRON2_URL`` names a mirror of the public repository,
``PYTORCH_CPU_INDEX`` one of PyTorch's package index for CPUs.

Needs Python's standard library only. An interrupted set-up is completed by running it again.
"""

import os
import sys
import time

from commands import ROOT, SetupError, say
from detectron2_sources import find_detectron2
from packages import install_packages


def main() -> int:
    os.environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    os.chdir(ROOT)
    started = time.monotonic()
    try:
        state = install_packages()
        found = find_detectron2(state)
    except (SetupError, OSError) as error:  # OSError: no space left, no permission
        print(f"setup_env: {error}; run the same command again to continue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # setup_env.sh says so
    version = ".".join(map(str, sys.version_info[:3]))
    seconds = time.monotonic() - started
    say(f"ready after {seconds:.0f} s: Python {version}, torch {state['torch']}, {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
