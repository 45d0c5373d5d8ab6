"""How a run gets its hidden states: by fast layers where they fit, frozen ones once an example."""

from typing import TYPE_CHECKING

from loractl import console, text
from loractl.artifacts import files
from loractl.config.settings import RunConfig
from loractl.data import batches
from loractl.data.store import lengths_of
from loractl.models.fast.activations import fuse_activations_
from loractl.models.fast.trunk import Trunk
from loractl.models.fast.trunk_cache import TrunkCache, n_bytes
from loractl.models.forward import check_isolation
from loractl.models.kernels import compile_layers_, use_liger_
from loractl.models.proving_run import ProvingRun
from loractl.models.segments.install import use_segments_
from loractl.paths import cache_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from loractl.records import Example


def trunk_of_(
    model: "PreTrainedModel",
    config: RunConfig,
    epochs: batches.Epochs,
    total_steps: int,
    run: ProvingRun,
) -> Trunk | None:
    """The way to hidden states of a run with adapters; None where transformers' own is taken.

    Where transformers' own layers are to run, they attend by segments if they can, with
    activations in one operation each. Raises ModelError where packed examples would change each
    other; the fast layers keep them apart. `run` is of this model as it is.
    """
    kernels, device = config.train.kernels, next(model.parameters()).device
    trunk = Trunk(model, run) if config.method != "full" and kernels == "auto" else None
    if kernels == "compile":
        compile_layers_(model)
    if kernels == "liger":
        use_liger_(model, device)
    if trunk is None or trunk.fallback_reason:
        if kernels == "auto":
            fuse_activations_(model)
        use_segments_(model)
        run.forget_()
        if config.data.packing:
            check_isolation(model)
    elif config.train.cache_trunk == "auto" and trunk.frozen_layers:
        comes_again = total_steps > batches.count_windows(epochs, 1)
        if comes_again:
            _keep_(trunk, model, trunk.frozen_layers, epochs.examples)
    return trunk


def _keep_(
    trunk: Trunk, model: "PreTrainedModel", frozen: int, examples: "Sequence[Example]"
) -> None:
    """Let the frozen layers be computed once an example, where the disk has room for it."""
    lengths, hidden = lengths_of(examples), model.config.get_text_config().hidden_size
    room = cache_home()
    room.mkdir(parents=True, exist_ok=True)
    needed = n_bytes(int(lengths.sum()), hidden, model.dtype)
    what = f"what the lowest {frozen} layers compute ({text.size(needed)})"
    left = files.free_bytes(room)
    if needed > left // 2:
        console.note(
            f"note: {what} is not kept for later epochs: {text.size(left)} are free in {room}"
        )
        return
    trunk.keep_(TrunkCache(lengths, layers=frozen, hidden=hidden, dtype=model.dtype, room=room))
    console.note(f"note: {what} is computed once an example and kept in {room} for this run")
