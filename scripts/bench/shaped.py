"""Make a model of random weights in the shape of a known one, tensor by tensor: a model of 7B takes
no more memory than its largest tensor.

python -m bench.shaped 1.5B --out DIR [--shards 4] [--layers N] [--dtype T] [--tokenizer DIR]
    [--adapter DIR --rank R --targets all-linear]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loractl.artifacts.model.strips import Strips, write_strips
from loractl.artifacts.peft import adapter, names
from loractl.artifacts.peft import config as peft_config
from loractl.lora.inject import adaptable, inject_
from loractl.lora.layer import strips
from loractl.lora.ranks import RankSpec, resolve
from loractl.models.base_directory import INDEX
from loractl.models.load import head_name, load_skeleton, locate
from loractl.models.shape.sizes import SIZES

STD = 0.02
UPDATE_STD = 0.05  # of A and of B: an update of a few percent of such weights


def write_model(
    size: str, out: Path, *, layers: int | None, shards: int, dtype: str, tokenizer: str | None
) -> int:
    """Write config and weights of a model of `SIZES`; return its number of parameters."""
    settings = dict(SIZES[size].config)
    if layers is not None:
        settings["num_hidden_layers"] = layers
    out.mkdir(parents=True)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.dtype, config.architectures = getattr(torch, dtype), [type(model).__name__]
    config.save_pretrained(out)
    if tokenizer is not None:
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    groups = grouped(shapes, total / shards)
    for number, group in enumerate(groups, start=1):
        path = out / f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_strips(path, [random_tensor(name, shapes[name], dtype) for name in group])
    places = {
        name: f"model-{number:05}-of-{len(groups):05}.safetensors"
        for number, group in enumerate(groups, start=1)
        for name in group
    }
    index = {
        "metadata": {"total_size": total * getattr(torch, dtype).itemsize},
        "weight_map": places,
    }
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def grouped(shapes: dict[str, tuple[int, ...]], size: float) -> list[list[str]]:
    """The names in their order, in groups of about `size` values."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if groups[-1] and held >= size * len(groups):
            groups.append([])
        groups[-1].append(name)
        held += torch.Size(shape).numel()
    return groups


def random_tensor(name: str, shape: tuple[int, ...], dtype: str) -> Strips:
    """Normal values for matrices and biases; ones for the weights of norms."""

    def values() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        for start, stop in strips(shape):
            part = torch.empty(min(stop, shape[0]) - start, *shape[1:])
            is_norm = len(shape) == 1 and name.endswith("weight")
            part.fill_(1.0) if is_norm else part.normal_(std=STD, generator=generator)
            yield part.to(getattr(torch, dtype))

    return Strips(name, getattr(torch, dtype), shape, values)


def write_adapter(base: Path, out: Path, *, rank: int, targets: Any) -> None:
    """Write an adapter whose A and B are random."""
    model = load_skeleton(locate(str(base)))
    spec = RankSpec(rank=rank, alpha=2 * rank, target_modules=targets)
    kinds = adaptable(model)
    ranks = resolve(spec, kinds, head=head_name(model))
    everything = [name for name, _ in model.named_modules()]
    content = peft_config.content(
        ranks, everything, spec=spec, kinds=kinds, dropout=0.0, base=str(base.resolve())
    )
    tensors = names.parameters(inject_(model, ranks))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_(std=UPDATE_STD, generator=generator)
    out.mkdir(parents=True)
    adapter.write(out, tensors, config=content, about={}, chat_template=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokenizer", help="a directory whose tokenizer is put beside the weights")
    parser.add_argument("--adapter", type=Path, help="also write a random adapter here")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all-linear")
    asked = parser.parse_args()
    count = write_model(
        asked.size, asked.out, layers=asked.layers, shards=asked.shards, dtype=asked.dtype,
        tokenizer=asked.tokenizer,
    )  # fmt: skip
    if asked.adapter:
        write_adapter(asked.out, asked.adapter, rank=asked.rank, targets=asked.targets)
    print(json.dumps({"parameters": count}))


if __name__ == "__main__":
    main()
