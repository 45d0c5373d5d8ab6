"""Run a causal LM on a batch: hidden states, or logits where tokens are trained. Also checks that
packed examples are isolated."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loractl.errors import ModelError
from loractl.models.segments.install import call_options
from loractl.records import UNTRAINED, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def trained_logits(model: "PreTrainedModel", batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that predict the trained tokens of a batch, and the ids of those tokens.

    Returns logits (n_trained, vocabulary) and targets (n_trained,). No mask is passed and no cache
    is kept: with `attention_mask=None` transformers separates the examples of a row by their
    positions (with an all-ones mask, or with a cache, they would see each other), and padding
    comes after every real token.
    """
    device, host = batch.labels.device, batch.on_host
    targets, trained = _next_labels(host)
    columns = trained.any(dim=0).nonzero().squeeze(1)  # positions where any row needs its logits
    row, place = trained[:, columns].nonzero(as_tuple=True)
    columns, row, place = (one.to(device, non_blocking=True) for one in (columns, row, place))
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = call_options(model, host.position_ids)
    if "position_ids" in accepted:
        options["position_ids"] = batch.position_ids
    if "logits_to_keep" in accepted:
        # The head is the largest product of a small model: only trained rows go through it.
        options["logits_to_keep"] = columns
    logits = model(
        input_ids=batch.input_ids, attention_mask=None, use_cache=False, **options
    ).logits  # (rows, columns or length, vocabulary)
    if "logits_to_keep" not in accepted:
        logits = logits[:, columns]
    return logits[row, place], targets[trained].to(device, non_blocking=True)


def _next_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The label that each position predicts, and whether it is trained: both (rows, length - 1).

    Only here and in `trained_weights` is anything shifted: position t predicts the label at t + 1.
    """
    targets = batch.labels[:, 1:]
    return targets, targets != UNTRAINED


def trained_weights(batch: Batch) -> Tensor | None:
    """The weights of the trained tokens in the same order, (n_trained,); None if each weighs 1."""
    weights = batch.on_host.weights
    if weights is None:
        return None
    chosen = weights[:, 1:][_next_labels(batch.on_host)[1]]
    return chosen.to(batch.labels.device, non_blocking=True)


def hidden_states(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """The input of a model's head, (rows, length, hidden): after the final norm.

    Mask and cache are as in `trained_logits`.
    """
    trunk = trunk_of(model)
    assert trunk is not None, f"{type(model).__name__} has no trunk of its own"
    hidden: Tensor = trunk(input_ids=batch.input_ids, **trunk_options(model, trunk, batch))[0]
    return hidden


def trunk_options(model: "PreTrainedModel", trunk: nn.Module, batch: Batch) -> dict[str, Any]:
    """The keywords besides `input_ids` with which `hidden_states` calls the trunk of a model."""
    given = {"attention_mask": None, "use_cache": False, "position_ids": batch.position_ids}
    accepted = inspect.signature(trunk.forward).parameters
    options = {name: value for name, value in given.items() if name in accepted}
    return options | call_options(model, batch.on_host.position_ids)


def trunk_of(model: "PreTrainedModel") -> nn.Module | None:
    """The part of a causal LM that returns the hidden states, if it can be called on its own."""
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    # Llama 4's text model has a base_model_prefix that is not its own.
    for trunk in (model.base_model, decoder, getattr(model, "model", model)):
        if trunk is not model and "input_ids" in inspect.signature(trunk.forward).parameters:
            return trunk
    return None


def trained_rows(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden states (n_trained, hidden) that predict the trained tokens, and their ids."""
    targets, trained = _next_labels(batch.on_host)
    row, column = trained.nonzero(as_tuple=True)
    places = row * batch.labels.shape[1] + column  # among all positions of the batch
    chosen = [one.to(hidden.device, non_blocking=True) for one in (places, targets[trained])]
    return hidden.flatten(0, 1).index_select(0, chosen[0]), chosen[1]


def check_isolation(model: "PreTrainedModel") -> None:
    """Verify on two short random examples that packed ones neither see nor shift each other.

    Raises ModelError if a model leaks. Costs three short forward passes.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            "data.packing: this model does not accept position_ids; set data.packing to false"
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    draws = torch.randint(0, vocabulary, (3, 12), generator=generator).to(device)
    first, other, second = draws
    positions = torch.arange(12, device=device)

    def last(*parts: Tensor) -> Tensor:
        """Logits of the last part, (12, vocabulary), computed as in training."""
        position_ids = torch.cat([positions] * len(parts))[None]
        logits: Tensor = model(
            input_ids=torch.cat(parts)[None],
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            **call_options(model, position_ids),
        ).logits
        return logits[0, -12:].float()

    with torch.no_grad():
        packed, changed, alone = last(first, second), last(other, second), last(second)
    scale = alone.square().mean().sqrt()
    leak = (packed - changed).square().mean().sqrt() / scale
    shift = (packed - alone).square().mean().sqrt() / scale
    # bfloat16 rounding moves logits by under 2 % of their size; a leak or a shifted position moves
    # them by far more.
    if leak > 1e-3 or shift > 0.05:
        raise ModelError(
            f"data.packing: examples in a packed row change each other's logits in this model (by"
            f" {leak:.1%} and {shift:.1%} of their size); set data.packing to false"
        )


def recompute_activations_(model: "PreTrainedModel") -> None:
    """Keep only each block's input for the backward pass, and recompute the block there."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:  # its name before transformers 5.23
        model.gradient_checkpointing_enable(options)  # type: ignore[no-untyped-call]
    # transformers then lets gradients flow down to the embeddings, through all the layers below the
    # lowest adapter. Only reentrant checkpointing needs that.
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]


def activation_bytes(model: "PreTrainedModel", rows: int, length: int) -> int:
    """A rough size of what one micro-batch keeps for its backward pass, without checkpointing.

    Per token and layer about 34 values of the hidden size (Korthikanti et al., arXiv 2205.05198,
    table 2, without attention scores), and about 10 bytes per vocabulary entry for the logits and
    their softmax: all of them, since an unknown architecture may not have a plain head.
    """
    config = model.config.get_text_config()
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    width = next(model.parameters()).element_size()
    per_token: int = 17 * width * hidden * layers + 10 * vocabulary
    return rows * length * per_token
