"""The command `camrt`, also as ``python -m camrt``.

It imports nothing before it can catch Ctrl-C: most of a short run is imports.
"""

import sys


def main() -> None:
    """Run the command and leave with its exit status."""
    try:
        from camrt.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
