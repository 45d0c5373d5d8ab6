"""`python -m loractl`, the same as the `loractl` program."""

from loractl.cli.main import entry

if __name__ == "__main__":
    entry()
