"""Forward passes of several models of one architecture in step, one part after another.

Each pass runs its model's own code in a thread of its own, of which one runs at a time. Where it
calls a part (a layer, say) it waits until all have come there; the part itself then runs outside,
where its weights can come and go.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loractl.artifacts.model.hollow import NotLayerwiseError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Call:
    """A part's forward, and what one pass calls it with."""

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        with _OnlyValues():  # type: ignore[no-untyped-call]
            output = self.forward(*self.args, **self.kwargs)
        # A table of positions may give a view of its weight, whose memory is used again.
        return output.clone() if isinstance(output, Tensor) else output

    @property
    def input(self) -> Any:
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


Run = Callable[[str, list[Call]], Sequence[Any]]
"""Takes a part's path and the calls of all passes; gives the output of each."""


def run(
    models: Sequence["PreTrainedModel"], parts: Sequence[str], ids: Tensor, part: Run
) -> list[Tensor]:
    """The logits of each pass; one model may make several. Raises NotLayerwiseError."""
    passes, left = [_Pass(model, ids) for model in models], set(parts)
    try:
        with _standing_in(models, parts), torch.no_grad():
            stops = [one.go_on() for one in passes]
            while any(stops):
                path, calls = _together(stops)
                if path not in left:
                    raise NotLayerwiseError(f"{path} runs twice in one pass")
                left.discard(path)
                outputs = part(path, calls)
                stops = [one.go_on(out) for one, out in zip(passes, outputs, strict=True)]
    finally:
        for one in passes:
            one.stop()
    if left:
        raise NotLayerwiseError(f"{min(left)} does not take part in a pass")
    return [one.logits for one in passes]


_Stop = tuple[str, Call] | None
"""The part that a pass has come to, and its call; None: it has ended."""


class _OnlyValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors without values: of a product with one, torch makes numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree_leaves((args, kwargs))
        if any(isinstance(one, Tensor) and one.is_meta for one in given):
            raise NotLayerwiseError(f"a weight is used outside its part, in {func}")
        return func(*args, **(kwargs or {}))


class _Stopped(Exception):
    """Ends a pass whose result nobody waits for any more."""


class _Pass(Thread):
    """A forward pass that waits at each part for its output."""

    logits: Tensor

    def __init__(self, model: "PreTrainedModel", ids: Tensor) -> None:
        super().__init__(daemon=True)
        self.model, self.ids = model, ids
        self.stops: SimpleQueue[_Stop] = SimpleQueue()
        self.outputs: SimpleQueue[Any] = SimpleQueue()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with torch.no_grad(), _OnlyValues():  # type: ignore[no-untyped-call]
                self.logits = self.model(input_ids=self.ids, use_cache=False).logits.float()
        except BaseException as error:  # go_on raises it in the thread that waits
            self.error = error
        self.stops.put(None)

    def go_on(self, output: Any = None) -> _Stop:
        """Start, or give the output of the part; run to the next one."""
        if self.ident is None:
            self.start()
        else:
            self.outputs.put(output)
        stop = self.stops.get()
        if self.error is not None:
            raise self.error
        return stop

    def wait(self, path: str, call: Call) -> Any:
        """Called within the pass: the output of a part."""
        self.stops.put((path, call))
        output = self.outputs.get()
        if output is _Stopped:
            raise _Stopped
        return output

    def stop(self) -> None:
        if self.is_alive():
            self.outputs.put(_Stopped)
            self.join()


def _together(stops: Sequence[_Stop]) -> tuple[str, list[Call]]:
    """The part that all passes have come to."""
    here = [stop for stop in stops if stop is not None]
    path = here[0][0]
    if len(here) < len(stops) or any(other != path for other, _ in here):
        raise NotLayerwiseError(f"not every pass takes {path} next")
    return path, [call for _, call in here]


@contextmanager
def _standing_in(models: Sequence["PreTrainedModel"], parts: Sequence[str]) -> Iterator[None]:
    """Have every part of these models wait for its output."""
    modules = {(m, path): m.get_submodule(path) for m in dict.fromkeys(models) for path in parts}
    for (_, path), module in modules.items():
        module.forward = partial(_stand_in, path, module.forward)
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _stand_in(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    here, call = current_thread(), Call(forward, args, kwargs)
    return here.wait(path, call) if isinstance(here, _Pass) else call()
