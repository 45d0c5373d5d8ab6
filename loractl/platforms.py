"""Whether loractl runs on this system at all.

Checked before anything else is imported, since other imports could already fail on Windows.
"""

import importlib
import os
import sys

SENTENCE = "loractl runs on Linux and macOS; on Windows, use WSL."
UNIX_MODULES = ("fcntl", "resource")
"""The modules of the standard library that exist only on Unix and that we import."""


def is_supported() -> bool:
    """Whether this is a Unix with the modules that we need, so neither Windows nor WebAssembly."""
    if os.name != "posix" or sys.platform == "win32":
        return False
    try:
        for name in UNIX_MODULES:
            importlib.import_module(name)
    except ImportError:
        return False
    return True
