"""llama.cpp in a separate process, which may crash: token ids of texts, logits of token ids, and
its quantizer.

The parent calls `ask` or `requantize`; the child runs this file. Logits come back as .npy files.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

F32 = 0  # ggml_type: keys and values are as precise as the rest
SPARE = 8
FILE_TYPES = {"f32": 0, "q4_k_m": 15}  # llama_ftype


@dataclass(frozen=True)
class Answer:
    """llama.cpp's results: token ids of each text, logits (length, vocabulary) of each sequence."""

    ids: list[list[int]]
    logits: list[np.ndarray[Any, np.dtype[np.float32]]]
    greedy: list[list[int]]  # ids that follow each sequence, the most likely each time


class CrashError(Exception):
    """llama.cpp did not answer; the message is the first error it printed."""


def is_installed() -> bool:
    return find_spec("llama_cpp") is not None


def ask(
    model: Path,
    *,
    adapter: Path | None = None,
    texts: Sequence[str] = (),
    sequences: Sequence[Sequence[int]] = (),
    greedy: int = 0,
) -> Answer:
    """Load a GGUF file, and an adapter over it, and answer. Raises CrashError."""
    with tempfile.TemporaryDirectory(prefix="loractl-llamacpp-") as name:
        work = Path(name)
        request = {
            "model": str(model.resolve()),
            "adapter": str(adapter.resolve()) if adapter else None,
            "texts": list(texts),
            "sequences": [list(ids) for ids in sequences],
            "greedy": greedy,
            "work": name,
        }
        _run_child(request)
        found = json.loads((work / "answer.json").read_text(encoding="utf-8"))
        logits = [np.load(work / f"{n}.npy") for n in range(len(sequences))]
    return Answer(found["ids"], logits, found["greedy"])


def requantize(model: Path, out: Path, kind: str) -> None:
    """Write a model again in a kind of FILE_TYPES, by llama.cpp's own quantizer: q4_k_m keeps what
    is most sensitive in more bits, and f32 holds the numbers that blocks stand for.

    Raises CrashError.
    """
    _run_child({"model": str(model.resolve()), "out": str(out.resolve()), "kind": kind})


def _run_child(request: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True
    )
    if done.returncode:
        if done.returncode < 0:
            raise CrashError(f"killed by {signal.Signals(-done.returncode).name}")
        said = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in said if re.search("error|failed|ASSERT", line)), "")
        raise CrashError((first or (said or ["it printed nothing"])[-1]).strip()[:300])


def _answer_request(request: dict[str, Any]) -> None:
    """Run in the child: everything that can crash."""
    import llama_cpp

    _leave_weights_as_they_lie(llama_cpp.llama_cpp)
    longest = max((len(ids) for ids in request["sequences"]), default=0)
    length = longest + request["greedy"] + SPARE
    llm = llama_cpp.Llama(
        request["model"],
        lora_path=request["adapter"],
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        verbose=True,  # otherwise it would not print why it failed
    )
    work, greedy = Path(request["work"]), []
    ids = [llm.tokenize(text.encode(), add_bos=False, special=True) for text in request["texts"]]
    for number, sequence in enumerate(request["sequences"]):
        llm.reset()  # type: ignore[no-untyped-call]
        llm.eval(sequence)
        np.save(work / f"{number}.npy", llm.scores[: len(sequence)])
        following: list[int] = []
        while len(following) < request["greedy"]:
            following.append(int(llm.scores[llm.n_tokens - 1].argmax()))
            llm.eval(following[-1:])
        greedy.append(following)
    answer = json.dumps({"ids": ids, "greedy": greedy})
    (work / "answer.json").write_text(answer, encoding="utf-8")


def _requantize(request: dict[str, Any]) -> None:
    """Run in the child."""
    import llama_cpp.llama_cpp as library

    options = library.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = FILE_TYPES[request["kind"]], True
    names = (request["model"].encode(), request["out"].encode())
    if library.llama_model_quantize(*names, options):
        sys.exit("failed to quantize")  # llama.cpp has printed why


def _leave_weights_as_they_lie(library: Any) -> None:
    """Keep llama.cpp from repacking weights, for which this class has no option.

    Its AMX path does not request permission from the kernel, which some virtual machines require:
    the process ends with SIGILL.
    """
    default = library.llama_model_default_params

    def parameters() -> Any:
        found = default()
        found.use_extra_bufts = False
        return found

    library.llama_model_default_params = parameters


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    (_requantize if "kind" in asked else _answer_request)(asked)
