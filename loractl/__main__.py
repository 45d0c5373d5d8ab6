"""The `loractl` program, also as `python -m loractl`."""

import sys

from loractl import platforms


def entry() -> None:
    """Run the program; on a system it does not support, say so and exit with 2."""
    if not platforms.is_supported():
        print(f"error: {platforms.SENTENCE}", file=sys.stderr)
        sys.exit(2)
    from loractl.cli.main import entry as run

    run()


if __name__ == "__main__":
    entry()
