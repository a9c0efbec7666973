#!/usr/bin/env python3
"""Convert a Caffe network to ONNX: `camrt convert`, from a checkout. See --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from converters import provenance

if __name__ == "__main__":
    provenance.begin(sys.argv[1:])  # what takes longest begins first
    try:
        from converters.cli import main
    except ImportError as error:
        sys.exit(
            f"{error.name} is not installed for {sys.executable}: "
            "run `make demo` and use .venv/bin/python, or pip install ."
        )
    main()
