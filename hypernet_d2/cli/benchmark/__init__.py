"""Measures HyperNet, beside what it is compared with.

    python tools/benchmark.py proposals [--windows 10000 30000 120000] [--json FILE]
    python tools/benchmark.py inference --config-file [NAME=]CONFIG
        [--against "[NAME=]CONFIG [KEY VALUE ...]"] ... [--json FILE] [KEY VALUE ...]
    python tools/benchmark.py training (the same)

`proposals` times the scoring of windows alone; `inference` whole detectors, by part; `training`
their iterations. docs/EVALUATION.md shows what they print.
"""

import argparse
import importlib
import sys

# The modules are imported when they run: `proposals` does without detectron2.
COMMANDS = {
    "proposals": ".proposals",
    "inference": ".inference",
    "training": ".training",
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(argv[:1]).command
    module = importlib.import_module(COMMANDS[command], __package__)
    parser = argparse.ArgumentParser(f"benchmark.py {command}", description=module.__doc__)
    module.add_arguments(parser)
    args = parser.parse_args(argv[1:])
    module.check_arguments(parser, args)
    module.run(args)
