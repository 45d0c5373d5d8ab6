"""The shapes of the tensors that are trained: an optimizer's state depends on each of them."""

from collections.abc import Iterator, Mapping, Sequence

from loractl.config.optimizers import Shape
from loractl.lora.ranks import ModuleRank, is_named
from loractl.models.shape.types import ModelShape, Module


def of_adapters(
    shape: ModelShape, ranks: Mapping[str, ModuleRank], formula: str = "lora"
) -> dict[str, Shape]:
    """The tensors of an adapter, by their names in adapter_model.safetensors."""
    tensors: dict[str, Shape] = {}
    for path, size in ranks.items():
        module = shape.by_path[path]
        r = size.rank * module.stack
        table = module.kind == "embedding"
        at = f"base_model.model.{path}"
        tensors[f"{at}.lora_embedding_A" if table else f"{at}.lora_A.weight"] = (r, module.d_in)
        tensors[f"{at}.lora_embedding_B" if table else f"{at}.lora_B.weight"] = (module.d_out, r)
        if formula == "dora":
            tensors[f"{at}.lora_magnitude_vector"] = (module.d_out,)
        if formula == "adalora":
            tensors[f"{at}.lora_E"] = (r, 1)
    return tensors


def of_model(shape: ModelShape) -> Iterator[Shape]:
    """The parameters of a model. Those outside its linear layers count as vectors of its width."""
    for module in shape.modules:
        tied = module.role == "head" and shape.tied
        yield from list(_of_module(module))[tied:]
    norms, rest = divmod(shape.others, shape.hidden)
    yield from ((shape.hidden,),) * norms
    if rest:
        yield (rest,)


def of_modules(shape: ModelShape, names: Sequence[str]) -> Iterator[Shape]:
    """The parameters of the modules that lora.modules_to_save trains in full."""
    for module in shape.modules:
        if any(is_named(module.path, name) for name in names):
            yield from _of_module(module)


def of_rows(shape: ModelShape, tokens: int) -> Iterator[Shape]:
    """The rows of new tokens, in the embedding and in a head with its own weight."""
    if tokens:
        yield from ((tokens, shape.hidden),) * (1 if shape.tied else 2)


def _of_module(module: Module) -> Iterator[Shape]:
    """Weight and bias."""
    stack = (module.stack,) if module.stack > 1 else ()
    rows, columns = module.d_out, module.d_in
    yield (*stack, *((columns, rows) if module.kind == "embedding" else (rows, columns)))
    if module.bias:
        yield (module.d_out,)
