"""One forward pass in which several variants of a model take each part together.

The variants are stacked along the batch: the model's own code runs once, over all rows, and each
part is called for the rows of each variant with that variant's weights.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loractl.artifacts.model.hollow import NotLayerwiseError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a part is called with, for one variant."""
Run = Callable[[str, Callable[..., Any], list[Call]], Any]
"""Takes a part's path, its forward and the calls of all variants; gives the list of its outputs, or
a tensor of all rows."""


def run(
    model: "PreTrainedModel", parts: Sequence[str], ids: Tensor, *, variants: int, part: Run
) -> list[Tensor]:
    """The logits of each variant. Raises NotLayerwiseError."""
    left = set(parts)
    modules = {path: model.get_submodule(path) for path in parts}

    def standing_in(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if path not in left:
                raise NotLayerwiseError(f"{path} runs twice in one pass")
            left.discard(path)
            calls = [(args, kwargs)]
            if variants > 1:
                size = len(ids) * variants
                cut = [_split((args, kwargs), variants, size, n) for n in range(variants)]
                calls = [(tuple(one[0]), one[1]) for one in cut]
            found = part(path, forward, calls)
            return _join(found, len(ids)) if isinstance(found, list) else found

        return stand_in

    for path, module in modules.items():
        module.forward = standing_in(path, module.forward)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids.repeat(variants, 1), use_cache=False).logits.float()
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
        # A tensor without values was used outside its part, or rows of all variants inside one.
        raise NotLayerwiseError(str(error).strip().split("\n")[0][:200]) from error
    finally:
        for module in modules.values():
            del module.forward
    if left:
        raise NotLayerwiseError(f"{min(left)} does not take part in a pass")
    return list(logits.split(len(ids)))


def _split(value: Any, variants: int, size: int, number: int) -> Any:
    if isinstance(value, Tensor):
        has_rows = value.dim() > 0 and value.shape[0] == size
        return value.chunk(variants)[number] if has_rows else value
    if isinstance(value, tuple | list):
        return type(value)(_split(one, variants, size, number) for one in value)
    if type(value) is dict:
        return {name: _split(one, variants, size, number) for name, one in value.items()}
    return value


def _join(outputs: list[Any], n_rows: int) -> Any:
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, Tensor):
        # Positions are looked up once for all rows, but each variant has its own table.
        whole = [one.expand(n_rows, *one.shape[1:]) if len(one) == 1 else one for one in outputs]
        return torch.cat(whole)
    if isinstance(first, tuple | list):
        return type(first)(_join(list(ones), n_rows) for ones in zip(*outputs, strict=True))
    return first
