"""Find, check and load a base model and its tokenizer, from a directory, a .gguf file or the hub.

The one place where errors of transformers and the hub become ours. Nothing is loaded partially: a
tensor missing from the files is an error here; transformers would initialize it at random.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from loractl import text
from loractl.errors import ModelError, is_out_of_memory
from loractl.models import base_directory, gguf_base, prequantized
from loractl.models.gguf_file import Header
from loractl.models.hub_download import from_hub
from loractl.models.torch_dtypes import dtype_word
from loractl.ops.finite import all_finite
from loractl.paths import address
from loractl.quant.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel  # 2.5 s, which no data error needs


@dataclass(frozen=True)
class Source:
    """Where a base model is: a directory and, for a GGUF base, the file in it."""

    name: str  # as the user wrote it
    directory: Path
    gguf: str | None = None
    quantization: Quantization | None = None  # how its linear layers are packed, if they are

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments that transformers' loaders need besides the directory."""
        return {"gguf_file": self.gguf} if self.gguf else {}

    @property
    def address(self) -> str:
        """The name under which it is found from any working directory: an absolute path, or the
        hub id."""
        return address(self.name)

    def weight_files(self) -> list[Path]:
        if self.gguf:
            return [self.directory / self.gguf]
        return sorted(self.directory.glob("*.safetensors"))


def locate(name_or_path: str, *, trust_remote_code: bool = False) -> Source:
    """Find a base model on this machine, or download it from the hub.

    Raises ModelError if it is not there, or is not a complete causal LM in safetensors or GGUF.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name_or_path}: found a file, expected a directory or a .gguf file")
        base_directory.require_no_adapter(name_or_path, path.parent)
        return Source(name_or_path, path.parent, path.name)
    directory = path if path.is_dir() else from_hub(name_or_path, trust_remote_code)
    base_directory.check(name_or_path, directory)
    prequantized.require_readable(name_or_path, directory)
    return Source(name_or_path, directory)


@contextmanager
def _translated(source: Source, what: str) -> Iterator[None]:
    """Turn what transformers raises for bad files into a ModelError with the first line of it."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except (SafetensorError, struct.error) as error:  # struct.error: a truncated GGUF file
        raise ModelError(f"model {source.name}: {what}: truncated or corrupt: {error}") from None
    except (
        OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, MemoryError
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            on_disk = text.size(sum(path.stat().st_size for path in source.weight_files()))
            raise ModelError(
                f"model {source.name}: {what} ({on_disk} on disk) do not fit into the available"
                " memory; set model.dtype: bfloat16, which takes half as much as float32, or use a"
                " smaller model"
            ) from None
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {source.name}: {what} needs Python code that comes with the model, which is"
                " not run; if you trust it, train with model.trust_remote_code: true"
            ) from None
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ModelError(
            f"model {source.name}: {what} cannot be loaded: {first.strip()[:300]}"
        ) from error


def _code(trusted: bool) -> dict[str, bool]:
    """Options of transformers' loaders: an explicit False, since None prompts on a terminal.

    All files are local; only trusted code may come from another repository.
    """
    return {"trust_remote_code": trusted, "local_files_only": not trusted}


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer with the chat template next to it. Raises ModelError."""
    # A tokenizer.json next to a .gguf file is the model's own; the one inside holds less.
    rebuilt = bool(source.gguf) and not (source.directory / "tokenizer.json").is_file()
    with _translated(source, "the tokenizer"):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            source.directory,
            **_code(trust_remote_code),
            **(source.keywords if rebuilt else {}),
        )
    if rebuilt:
        gguf_base.restore_splitting_(tokenizer, source.weight_files()[0])
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"model {source.name}: its tokenizer gives no character offsets, which the masks need;"
            " a tokenizer.json is missing"
        )
    return tokenizer


def _config(source: Source, trusted: bool) -> "PretrainedConfig":
    if source.gguf:
        return gguf_base.config_of(source.weight_files()[0])
    config: PretrainedConfig = AutoConfig.from_pretrained(source.directory, **_code(trusted))
    return config


@dataclass(frozen=True)
class Limits:
    """What the config of a base says of its size; None: it does not say."""

    positions: int | None  # tokens of the longest sequence
    rows: int | None  # of the embedding: ids below this many have one


def limits(source: Source, *, trust_remote_code: bool = False) -> Limits:
    """The limits of a base, without loading it. Raises ModelError."""
    with _translated(source, "the config"):
        config = _config(source, trust_remote_code)
    found = (
        getattr(config.get_text_config(), name, None)
        for name in ("max_position_embeddings", "vocab_size")
    )
    return Limits(*(one if isinstance(one, int) and one > 0 else None for one in found))


def load_skeleton(source: Source, *, dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """The modules of a causal LM without their weights, on the meta device; `dtype` None: that of
    its config. Raises ModelError."""
    build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with _translated(source, "the config"):
        config = _config(source, False)
        with torch.device("meta"):
            named = {} if dtype is None else {"dtype": dtype}
            return build(config, trust_remote_code=False, **named)


def load_model(
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    finite: bool = True,
    dense: bool = False,
    fingerprint: Callable[[], str] | None = None,
    streams: bool = False,
) -> "PreTrainedModel":
    """Load a complete causal LM, with every weight in `dtype`, on `device`, in eval mode.

    Layers of a quantized source are packed, those of a GGUF file stay in its blocks on a CPU;
    `dense`: unpacked, into the numbers that they compute with. `fingerprint` of the source lets
    what was packed be kept for the next time. `streams`: the layers stay on disk and come to memory
    when they compute.

    Raises ModelError if a tensor is missing, has the wrong shape, or is not finite. Training passes
    `finite=False`: there the first loss reveals it, with step, rows and the exit code of a
    non-finite number.
    """
    options = (source, dtype, device, trust_remote_code)
    header = None
    if source.gguf and not dense and device.type == "cpu":
        with _translated(source, "the weights"):
            header = gguf_base.with_blocks(source.weight_files()[0])
    if streams:
        model, wrong = _load_packed(*options, dense=False, fingerprint=fingerprint, streams=True)
    elif header is not None:
        model, wrong = _load_packed(*options, dense=False, fingerprint=None, header=header)
    elif prequantized.comes_packed(source.directory, source.gguf) or (
        source.quantization and not prequantized.is_unpacked(source.directory, source.gguf)
    ):
        model, wrong = _load_packed(*options, dense=dense, fingerprint=fingerprint)
    else:
        model, wrong = _load_plain(*options), []
    parameters = model.named_parameters() if finite else ()
    wrong += [name for name, one in parameters if not all_finite(one)]
    if finite and wrong:
        dtype_name = dtype_word(dtype)
        raise ModelError(
            f"model {source.name}: {wrong[0]} holds values that are not finite in {dtype_name}"
        )
    unpacked = header is None and prequantized.is_unpacked(source.directory, source.gguf)
    if source.quantization and unpacked:
        from loractl.models import packed_load

        packed_load.pack_(model, source.quantization, dense=dense)
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]


def _load_plain(
    source: Source, dtype: torch.dtype, device: torch.device, trusted: bool
) -> "PreTrainedModel":
    loaded: Any
    with _translated(source, "the weights"):
        loaded = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype=dtype,
            **_code(trusted),
            use_safetensors=None if source.gguf else True,
            output_loading_info=True,
            **source.keywords,
            **(gguf_base.unpacking() if source.gguf else prequantized.unpacking(source.directory)),
        )
    model: PreTrainedModel = loaded[0]
    base_directory.require_tensors(source.name, loaded[1])
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if source.gguf and quantizer is not None:
        # The weights were unpacked: without these marks it is a plain model that can be saved.
        quantizer.remove_quantization_config(model)
    model.to(device)  # type: ignore[arg-type]
    return model


def _load_packed(
    source: Source,
    dtype: torch.dtype,
    device: torch.device,
    trusted: bool,
    *,
    dense: bool,
    fingerprint: Callable[[], str] | None,
    streams: bool = False,
    header: Header | None = None,
) -> tuple["PreTrainedModel", list[str]]:
    """The model, and the names of its packed weights that are not finite. `header`: of a GGUF file
    whose blocks are kept."""
    from loractl.models import gguf_load, packed_load, packer, streamed_load

    chosen = source.quantization
    with _translated(source, "the weights"):
        config = _config(source, trusted)
        build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model_class = type(build(config, trust_remote_code=trusted))
        work = packer.Packing(source.name, dtype, device, dense=dense)
        if header is not None:
            model, found = gguf_load.load(header, model_class, config, work, chosen=chosen)
        else:
            load_ = streamed_load.load if streams else packed_load.load
            model, found = load_(
                source.directory, model_class, config, work, chosen=chosen, fingerprint=fingerprint
            )
    base_directory.require_tensors(source.name, found)
    model.to(device)  # type: ignore[arg-type]
    return model, work.not_finite


def n_rows(model: "PreTrainedModel") -> int:
    """Rows of the input embedding: ids below this many have one."""
    table: Any = model.get_input_embeddings()
    return int(getattr(table, "base", table).weight.shape[0])  # of an adapted one: the frozen table


def head_name(model: "PreTrainedModel") -> str | None:
    """The path of the output head among the model's modules."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next((name for name, module in model.named_modules() if module is head), None)
