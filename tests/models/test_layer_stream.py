"""Layers that pass through two buffers: every number is the one it would be in memory."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loractl.errors import ModelError
from loractl.models.fast.trunk import Trunk
from loractl.models.forward import hidden_states, recompute_activations_
from loractl.models.layer_stream import Piece, Stream, laid_out
from loractl.models.objective import TokenLoss
from loractl.models.stored import tensors_in
from loractl.models.streamed_layers import decoder_layers, install_, stream_of
from loractl.records import Batch
from tests.models.fast.conftest import BATCH, adapt_, hidden_and_gradients, model_of
from tests.tiny import batch_of


def numbered(path: Path, layers: int, dtype: torch.dtype = torch.float32) -> Stream:
    """Layer i holds a matrix of i and a vector of -i."""
    tensors = {}
    for i in range(layers):
        tensors[f"model.layers.{i}.a"] = torch.full((3, 5), float(i), dtype=dtype)
        tensors[f"model.layers.{i}.b"] = torch.full((7,), -float(i), dtype=dtype)
    tensors["model.norm"] = torch.ones(4)
    save_file(tensors, path / "m.safetensors")
    return stream_of(tensors_in(path / "m.safetensors"), torch.float32)


def shown(stream: Stream, number: int) -> list[float]:
    stream.arrive(number)
    return [float(stream.view(number, f"model.layers.{number}.{name}").mean()) for name in "ab"]


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_layer_is_there_when_it_has_arrived(
    tmp_path: Path, layers: int, dtype: torch.dtype
) -> None:
    """Up and down, twice, with layers that compute several times."""
    stream = numbered(tmp_path, layers, dtype)
    up = list(range(layers))
    for number in [*up, *up[::-1], *up, *up[::-1], *(n for n in up for _ in range(3))]:
        assert shown(stream, number) == [number, -number]


def test_a_layer_is_read_once_on_the_way_up_and_once_on_the_way_down(tmp_path: Path) -> None:
    """The two at each end are still there."""
    stream, layers = numbered(tmp_path, 6), list(range(6))
    a_layer = 4 * (3 * 5 + 7)
    for number in [*layers, *layers[::-1]]:
        shown(stream, number)
    assert stream.bytes_read == a_layer * (6 + 4)
    for number in layers:
        shown(stream, number)
    assert stream.bytes_read == a_layer * (6 + 4 + 4)


def test_two_buffers_have_room_for_the_largest_layers_alone(tmp_path: Path) -> None:
    stream = numbered(tmp_path, 6)
    assert 2 * 4 * (3 * 5 + 7) <= stream.room <= 2 * 4 * (3 * 5 + 7) + 2 * 64


def test_a_file_that_is_replaced_is_the_old_one_still_and_one_cut_short_is_named(
    tmp_path: Path,
) -> None:
    stream = numbered(tmp_path, 6)
    (tmp_path / "m.safetensors").rename(tmp_path / "old")
    (tmp_path / "m.safetensors").write_bytes(b"other")
    assert shown(stream, 4) == [4, -4]
    with (tmp_path / "old").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ModelError, match="layer 2 cannot be read: .*m.safetensors: ends within"):
        shown(stream, 2)


def streamed(model: Any, path: Path) -> Stream:
    """Put the layers of a model into a file, and views of a stream in their place."""
    tensors = {name: one.detach().clone() for name, one in model.state_dict().items()}
    save_file(tensors, path / "m.safetensors")
    stream = stream_of(tensors_in(path / "m.safetensors"), next(model.parameters()).dtype)
    for number, layer in enumerate(decoder_layers(model)):
        for name, _ in list(layer.named_parameters()):
            view = stream.view(number, f"model.layers.{number}.{name}")
            owner = layer.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(view, requires_grad=False))
    install_(model, stream)
    return stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_hidden_states_and_gradients_are_the_same_bits(
    tmp_path: Path, name: str, checkpointing: bool, dtype: torch.dtype
) -> None:
    batch, found = batch_of(*BATCH).without_padding(), []
    for offload in (False, True):
        model = model_of(name, num_hidden_layers=5).to(dtype)
        stream = streamed(model, tmp_path) if offload else None
        torch.manual_seed(1)
        adapt_(model)
        trunk = Trunk(model)
        assert trunk.fallback_reason == "" and trunk.goes_together == offload
        if checkpointing:
            recompute_activations_(model)
            model.train()
        for _ in range(2):
            hidden, gradients = hidden_and_gradients(
                lambda one, run=trunk: run(one)[0], model, batch
            )
        found.append((hidden, gradients))
        assert stream is None or stream.bytes_read > 0
    (hidden, gradients), (other, others) = found
    assert torch.equal(hidden, other) and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[path], others[path]) for path in gradients)


def test_transformers_own_layers_compute_the_same_bits_with_checkpointing(tmp_path: Path) -> None:
    batch, found = batch_of(*BATCH).without_padding(), []
    for offload in (False, True):
        model = model_of("Llama", num_hidden_layers=5)
        if offload:
            streamed(model, tmp_path)
        torch.manual_seed(1)
        adapt_(model)
        recompute_activations_(model)
        model.train()
        run = partial(hidden_states, model)
        found.append(hidden_and_gradients(run, model, batch))
    (hidden, gradients), (other, others) = found
    assert torch.equal(hidden, other) and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[path], others[path]) for path in gradients)


def window(count: int) -> list[Batch]:
    return [batch_of((4 + i, 7), (9 - i,)) for i in range(count)]


def gradients_of(loss: TokenLoss, model: nn.Module, batches: list[Batch]) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    for group in loss.groups(batches):
        torch.autograd.backward([one / 7 for one in loss.sums(group)])
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_the_micro_batches_of_a_step_go_through_each_layer_together_with_the_same_bits(
    tmp_path: Path,
) -> None:
    batches, found = window(4), []
    for offload in (False, True):
        model = model_of("Llama", num_hidden_layers=5)
        stream = streamed(model, tmp_path) if offload else None
        torch.manual_seed(1)
        adapt_(model)
        loss = TokenLoss(model, trunk=Trunk(model))
        assert [len(group) for group in loss.groups(batches)] == ([4] if offload else [1] * 4)
        found.append(gradients_of(loss, model, batches))
        if stream is not None:
            before = stream.bytes_read
            gradients_of(loss, model, batches)
            a_layer = sum(piece.end - piece.offset for piece in stream.layers[0].values())
            assert stream.bytes_read - before == a_layer * (3 + 3), "three up, three down"
    assert len(found[0]) == len(found[1]) > 20
    assert all(map(torch.equal, *found))


def test_with_dropout_the_micro_batches_go_one_after_the_other(tmp_path: Path) -> None:
    model = model_of("Llama")
    streamed(model, tmp_path)
    adapt_(model, dropout=0.1)
    loss = TokenLoss(model, trunk=Trunk(model))
    model.train()
    assert [len(group) for group in loss.groups(window(3))] == [1, 1, 1]


def test_a_model_whose_layers_are_not_all_in_the_stream_is_refused(tmp_path: Path) -> None:
    model = model_of("Llama")
    save_file(dict(model.state_dict()), tmp_path / "m.safetensors")
    stream = stream_of(tensors_in(tmp_path / "m.safetensors"), torch.float32)
    with pytest.raises(ModelError, match="of layer 0 is not in the files as the model needs it"):
        install_(model, stream)


def test_pieces_do_not_overlap(tmp_path: Path) -> None:
    stream = numbered(tmp_path, 2)
    pieces: list[Piece] = list(stream.layers[0].values())
    assert pieces[0].end <= pieces[1].offset and pieces[1].offset % 64 == 0
    assert laid_out({}) == {}
