"""Runs `loractl` in processes forked from one that has imported everything.

Each is a process of its own that a real SIGKILL ends, but it starts in milliseconds. This file is a
program: it reads a JSON request a line and answers with one; `Warm` in conftest.py speaks to it. It
never takes a backward pass itself, and OMP_NUM_THREADS=1 keeps it at one thread, so that it may
fork.
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any

HELD: dict[int, int] = {}
"""Of processes that wait for `go`: the pipe that lets them."""


def start(argv: list[str], log: str, hold: bool, limits: dict[str, int]) -> int:
    """Fork a process that runs `loractl ARGV` and writes what it says to a file."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read_end)
        if hold:
            HELD[pid] = write_end
        else:
            os.close(write_end)
        return pid
    os.close(write_end)
    for other in HELD.values():
        os.close(other)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(out, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, limit in limits.items():
        if name == "AS_ABOVE":  # beyond what is taken already
            name, limit = "AS", limit + taken()
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    os.read(read_end, 1)  # ends when the other end is closed
    os._exit(run(argv))


def taken() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def run(argv: list[str]) -> int:
    from loractl.cli.main import entry

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    sys.argv = ["loractl", *argv]
    try:
        entry()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def ended(pid: int) -> int | None:
    """How a process ended: its exit code, or the negative number of the signal; None: it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def answer(request: dict[str, Any]) -> int | None:
    match request.pop("do"):
        case "start":
            return start(**request)
        case "go":
            os.close(HELD.pop(request["pid"]))
            return None
        case "ended":
            return ended(request["pid"])
        case "load":
            importlib.import_module(request["module"])
            return None
    raise AssertionError(request)


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import loractl.artifacts.model.merge
    import loractl.artifacts.model.proof
    import loractl.cli.main
    import loractl.commands.merge
    import loractl.engine.train  # noqa: F401

    assert torch.get_num_threads() == 1
    for model in sys.argv[1:]:  # brings the code of its kind
        AutoTokenizer.from_pretrained(model)
        AutoModelForCausalLM.from_pretrained(model)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
