"""Adapters from files into a hub: the same answers as in the model itself, or nothing at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loractl.artifacts.peft import adapter as adapters
from loractl.artifacts.peft import attach
from loractl.artifacts.peft import config as peft_config
from loractl.artifacts.peft.attach import load_
from loractl.artifacts.peft.names import checkpoint_tensors, parameters, plain_tensors
from loractl.errors import ArtifactError
from loractl.lora.hub import Hub, MixedRowsError, own_tensors
from loractl.lora.inject import adaptable, inject_, remove_
from loractl.lora.ranks import RankSpec, resolve

Make = Callable[..., Path]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"formula": "dora"},
    "pissa": {"init": "pissa"},
    "dora-olora": {"formula": "dora", "init": "olora"},
}


def plain(base: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model.eval()


def write(model: PreTrainedModel, base: Path, directory: Path, variant: str, ends: str) -> None:
    """A trained adapter of every layer, as a checkpoint or as it is published."""
    options = VARIANTS[variant]
    kinds = {name: kind for name, kind in adaptable(model).items() if "wpe" not in name}
    spec = RankSpec(3, 5, list(kinds), scaling="rslora", rank_pattern={next(iter(kinds)): 2})
    ranks = resolve(spec, kinds)
    names = [name for name, _ in model.named_modules()]
    config = peft_config.content(
        ranks, names, spec=spec, kinds=kinds, dropout=0.0, base=str(base), **options
    )
    layers = inject_(model, ranks, **options)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in parameters(layers).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    if ends == "published" and peft_config.starts_at_parts(config):
        config = peft_config.doubled(config)
    tensors = (plain_tensors if ends == "published" else checkpoint_tensors)(layers)
    directory.mkdir()
    adapters.write(directory, tensors, config=config, about={}, chat_template=None)
    remove_(model)


@pytest.mark.parametrize("ends", ["published", "checkpoint"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_in_a_hub_an_adapter_answers_bit_for_bit_as_in_the_model(
    architecture: str, variant: str, ends: str, base: Make, tmp_path: Path,
    logits: Callable[..., Tensor],
) -> None:  # fmt: skip
    where = base(architecture)
    model = plain(where)
    untouched = logits(model)
    write(model, where, tmp_path / "adapter", variant, ends)
    adapter = adapters.read(tmp_path / "adapter")
    load_(model, adapter)
    expected = logits(model)
    assert float((expected - untouched).abs().max()) > 0.01
    remove_(model)
    hub = Hub(model)
    attach.add_to_hub_(hub, model, "tuned", adapter)
    hub.use("tuned")
    assert torch.equal(logits(model), expected)
    hub.use_rows(["tuned", None])
    mixed = logits(model)
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((mixed[0] - expected[0]).abs().max()) <= bound
    assert torch.equal(mixed[1], untouched[1])


def test_what_is_in_the_hub_is_a_copy_of_the_file_in_float32(base: Make, adapter_dir: Make) -> None:
    where = base("llama")
    adapter = adapters.read(adapter_dir(where))
    for name, tensor in adapter.tensors.items():
        adapter.tensors[name] = tensor.bfloat16()
    layers = attach.stand_ins_of(adapter, plain(where))
    found = parameters(layers)  # type: ignore[arg-type]
    assert found.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor.float())
    stored = {tensor.data_ptr() for tensor in adapter.tensors.values()}
    assert not stored & {tensor.data_ptr() for tensor in own_tensors(layers)}


def test_an_adapter_that_does_not_fit_whole_is_refused_and_the_hub_stays_as_it_was(
    base: Make, adapter_dir: Make, logits: Callable[..., Tensor]
) -> None:
    where = base("llama")
    model, good = plain(where), adapters.read(adapter_dir(where))
    hub = Hub(model)
    attach.add_to_hub_(hub, model, "good", good)
    hub.use("good")
    expected = logits(model)
    some = sorted(good.tensors)
    cut = dict(good.tensors)
    del cut[some[3]]
    wrong = {**good.tensors, some[5]: good.tensors[some[5]][:, :-1]}
    strange = {**good.tensors, "base_model.model.nowhere.lora_A.weight": torch.zeros(4, 3)}
    for tensors, words in ((cut, "missing"), (wrong, "has shape"), (strange, "nowhere")):
        with pytest.raises(ArtifactError, match=words):
            attach.add_to_hub_(
                hub, model, "bad", adapters.Adapter(**{**vars(good), "tensors": tensors})
            )
        assert hub.names == ("good",) and torch.equal(logits(model), expected)
    with pytest.raises(ArtifactError, match="0 of"):
        attach.add_to_hub_(hub, model, "other", adapters.read(adapter_dir(base("gpt2"), "other")))
    assert hub.names == ("good",) and torch.equal(logits(model), expected)


def write_whole(where: Path, directory: Path, whole: list[str], targets: list[str]) -> None:
    """An adapter with modules that are trained whole, by PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, target_modules=targets, modules_to_save=whole, init_lora_weights=False)
    torch.manual_seed(5)
    tuned = get_peft_model(plain(where), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(directory)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_modules_that_adapters_bring_whole_answer_the_rows_of_theirs(
    base: Make, adapter_dir: Make, tmp_path: Path, logits: Callable[..., Tensor]
) -> None:
    where = base("llama")
    model = plain(where)
    hub, alone = Hub(model), [logits(model)]
    write_whole(where, tmp_path / "one", ["norm", "lm_head"], ["q_proj"])
    write_whole(where, tmp_path / "two", ["lm_head", "embed_tokens"], ["v_proj"])
    for name in ("one", "two"):
        # The second copies modules that have the first one's hooks, while that is in use.
        attach.add_to_hub_(hub, model, name, adapters.read(tmp_path / name))
        hub.use(name)
        alone.append(logits(model))
        by_itself = plain(where)
        load_(by_itself, adapters.read(tmp_path / name))
        assert torch.equal(alone[-1], logits(by_itself))
    for names in (["one", "two"], ["two", None], [None, "one"]):
        hub.use_rows(names)
        mixed = logits(model)
        for row, name in enumerate(names):
            expected = alone[[None, "one", "two"].index(name)][row]
            bound = 1e-5 * max(1.0, float(expected.abs().max()))
            assert float((mixed[row] - expected).abs().max()) <= bound
            assert name is not None or torch.equal(mixed[row], expected)


def test_fused_experts_answer_one_adapter_at_a_time(
    base: Make, adapter_dir: Make, logits: Callable[..., Tensor]
) -> None:
    where = base("mixtral")
    experts = [name for name, kind in adaptable(plain(where)).items() if kind == "experts"]
    assert experts
    directory = adapter_dir(where, target_modules=[*experts, "q_proj"])
    model = plain(where)
    untouched, hub = logits(model), Hub(model)
    adapter = adapters.read(directory)
    attach.add_to_hub_(hub, model, "tuned", adapter)
    by_itself = plain(where)
    load_(by_itself, adapter)
    hub.use("tuned")
    assert torch.equal(logits(model), logits(by_itself))
    assert float((logits(model) - untouched).abs().max()) > 0.01
    assert hub.ranks("tuned") == [4] and hub.n_bytes("tuned") == sum(
        4 * tensor.numel() for tensor in adapter.tensors.values()
    )
    hub.use_rows(["tuned", None])
    with pytest.raises(MixedRowsError, match="experts: found an input of shape"):
        logits(model)
    hub.use(None)
    assert torch.equal(logits(model), untouched)
