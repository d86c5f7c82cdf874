"""`python -m densevl` is the `densevl` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; Ctrl-C while it is imported is one line too."""
    try:
        from densevl.cli import app

        app(prog_name="densevl")
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped; the same command begins anew\n")
        sys.exit(130)
    finally:
        exec("")  # noqa: S102  interrupted within an exec, such as of a dataclass, Python dies by the signal otherwise


if __name__ == "__main__":
    main()
