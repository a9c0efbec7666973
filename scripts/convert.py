#!/usr/bin/env python3
"""Run `camrt convert` from a checkout: convert a Caffe network to ONNX. See --help."""

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    try:
        from converters import provenance

        provenance.begin(sys.argv[1:])  # start hashing, which takes longest, before all imports
        from converters.cli import main as convert
    except ImportError as error:
        sys.exit(
            f"{error.name} is not installed for {sys.executable}: run `make demo` and use .venv/bin/python, "
            f"or install camrt with {sys.executable} -m pip install ."
        )
    convert()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(130)
