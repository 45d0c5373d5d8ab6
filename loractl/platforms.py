"""Whether loractl runs on this system at all. Imports nothing heavy: it is asked before the command
line is read, whose own imports might fail elsewhere."""

import importlib
import os
import sys

SENTENCE = "loractl runs on Linux and macOS; on Windows, use WSL."
UNIX_MODULES = ("fcntl", "resource")
"""Modules of Python's that only Unix has, and that we import."""


def is_supported() -> bool:
    """Whether this is a Unix with the modules that we need: not Windows, and no Python for the
    web."""
    if os.name != "posix" or sys.platform == "win32":
        return False
    try:
        for name in UNIX_MODULES:
            importlib.import_module(name)
    except ImportError:
        return False
    return True
