"""How a run computes hidden states: with fast layers if possible, frozen ones once per example."""

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
    """The trunk that computes a run's hidden states; None if transformers' own layers do.

    When transformers' own layers run, they attend by segments if they can, with activations in
    one operation each. Raises ModelError if packed examples would affect each other; the fast
    layers keep them apart. `run` belongs to this model as it is now.
    """
    kernels, device = config.train.kernels, next(model.parameters()).device
    trunk = Trunk(model, run) if config.method != "full" and kernels == "auto" else None
    if kernels == "compile":
        compile_layers_(model)
    if kernels == "liger":
        use_liger_(model, device)
    if trunk is None or trunk.fallback_reason:
        attend_apart_(model, run, fuses=kernels == "auto", packing=config.data.packing)
    elif config.train.cache_trunk == "auto" and trunk.frozen_layers:
        comes_again = total_steps > batches.count_windows(epochs, 1)
        if comes_again:
            _keep_(trunk, model, trunk.frozen_layers, epochs.examples)
    return trunk


def attend_apart_(model: "PreTrainedModel", run: ProvingRun, *, fuses: bool, packing: bool) -> None:
    """Let transformers' own layers keep packed examples apart. Raises ModelError if they do not."""
    if fuses:
        fuse_activations_(model)
    use_segments_(model)
    run.forget_()
    if packing:
        check_isolation(model)


def _keep_(
    trunk: Trunk, model: "PreTrainedModel", frozen: int, examples: "Sequence[Example]"
) -> None:
    """Compute the frozen layers only once per example, if the disk has room for the results."""
    lengths, hidden = lengths_of(examples), model.config.get_text_config().hidden_size
    room = cache_home()
    room.mkdir(parents=True, exist_ok=True)
    needed = n_bytes(int(lengths.sum()), hidden, model.dtype)
    layers = f"{frozen} layers" if frozen > 1 else "layer"
    what = f"the output of the lowest {layers} ({text.size(needed)})"
    left = files.free_bytes(room)
    if needed > left // 2:
        console.note(
            f"note: {what} is not kept for later epochs: only {text.size(left)} free in {room}"
        )
        return
    trunk.keep_(TrunkCache(lengths, layers=frozen, hidden=hidden, dtype=model.dtype, room=room))
    console.note(f"note: {what} is computed once per example and kept in {room} for this run")
