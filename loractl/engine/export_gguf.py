"""The GGUF exports of `loractl export`: writing the files, and the proof in llama.cpp."""

import tempfile
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch

from loractl.artifacts.gguf import (
    layout as gguf_layout,
)
from loractl.artifacts.gguf import (
    llamacpp,
    ollama,
)
from loractl.artifacts.gguf import (
    proof as gguf_proof,
)
from loractl.artifacts.gguf import (
    vocabulary as gguf_vocabulary,
)
from loractl.artifacts.gguf import (
    write as gguf,
)
from loractl.artifacts.gguf.layout import Field
from loractl.artifacts.model import merge
from loractl.artifacts.model.merge import own_dtype, refuse_quantized
from loractl.artifacts.model.plan import Plan, packed_tensors, plan_merge
from loractl.artifacts.model.stops import listed_ends
from loractl.artifacts.peft.adapter import Adapter
from loractl.artifacts.peft.attach import ranks_of
from loractl.artifacts.peft.vocabulary_size import fit_
from loractl.data.ends import texts_of
from loractl.data.rendering import TemplateError, apply
from loractl.engine.speakers import ends_of, tokenizer_of
from loractl.errors import ModelError, NumericError
from loractl.models.load import Source, load_skeleton, load_tokenizer, locate, n_rows
from loractl.models.torch_dtypes import short_word
from loractl.records import Message

CONVERSATIONS = (
    (Message("user", "What is 12 + 345?"),),
    (
        Message("user", "Hello there! I'd like 3 mugs,\n  2 plates & a jug.   Please."),
        Message("assistant", "It's noted:\n\n- mugs: 3\n- plates: 2\n\tjug: 1"),
        Message("user", "Straße 1234567, café, naïve, 東京, Привет, 🙂"),
    ),
)
TEXTS = (
    "I've told you: DON'T WE'LL they're 3.14159 1,000,000 a_b-c/d #x {\"k\": [1, 2]}",
    "def f(x):\n    return x ** 2\n\n\n\t\tif x  >=  10:\r\n  pass   \n ",
)


class Exporting:
    """One export to GGUF; everything is checked before a byte is written. Raises LoractlError."""

    def __init__(
        self, adapter: Adapter, source: Source, out: Path, *, dtype: str | None, verify: bool
    ) -> None:
        if find_spec("gguf") is None:
            raise ModelError("GGUF files need the gguf package: pip install 'loractl[gguf]'")
        refuse_quantized(source)
        self.adapter, self.source, self.out, self.verify = adapter, source, out, verify
        self.lines: list[str] = []
        self.dtype = dtype
        self.skeleton = load_skeleton(source)
        fit_(self.skeleton, adapter)
        self.layout = gguf_layout.layout(source.name, self.skeleton.config)
        ranks_of(adapter, self.skeleton)
        self.tokenizer = tokenizer_of(adapter, load_tokenizer(source), n_rows(self.skeleton))
        self.ends = ends_of(adapter, self.tokenizer)
        self.texts = [*self._render_conversations(), *TEXTS]
        if not source.gguf:
            self.vocabulary  # noqa: B018  # refuses what llama.cpp cannot tokenize

    @cached_property
    def vocabulary(self) -> dict[str, Field]:
        """The tokenizer's fields. Raises ModelError."""
        return gguf_vocabulary.fields(
            self.source.name,
            self.tokenizer,
            int(self.skeleton.config.vocab_size),
            stops=list(dict.fromkeys([*self.ends, *listed_ends(self.source.directory)])),
            rendered=self.texts[0] if self.tokenizer.chat_template else None,
        )

    def _render_conversations(self) -> list[str]:
        """Conversations as training renders them, without those that the template rejects."""
        found = []
        for messages in CONVERSATIONS if self.tokenizer.chat_template else ():
            try:
                found.append(apply(self.tokenizer, messages, prompt=True))
            except TemplateError:
                continue
        return found

    def ollama_family(self) -> ollama.Found:
        adds_bos = bool(self.vocabulary["tokenizer.ggml.add_bos_token"])
        found = ollama.find(self.source.name, self.tokenizer, adds_bos=adds_bos)
        return replace(found, ends=tuple(texts_of(self.tokenizer, self.ends)))

    def write_adapter(self, path: Path) -> None:
        """Write only the adapter, and prove it on a float32 GGUF of the base: if that is a GGUF
        file, on llama.cpp's copy of it in float32, and on the file itself."""
        dtype = self.dtype or "f32"
        pieces = gguf.halves(self.adapter, self.layout, self.skeleton, dtype)
        gguf.write_adapter(path, self.adapter, self.layout, pieces)
        if not self._can_prove():
            return
        expected = gguf_proof.expect(
            self.source, self.adapter, self.layout, dtype=dtype, model_file=None
        )
        with tempfile.TemporaryDirectory(dir=path.parent) as name:  # a disk with room
            base = Path(name) / "base.gguf"
            if self.source.gguf:
                self._requantize(self.source.weight_files()[0], base, "f32")
            else:
                packed = packed_tensors(self.source, self.skeleton) or {}
                self._write_weights(base, Plan({}, {}, {}, False, packed=packed), "f32")
            self._require_proof(expected, dtype, base, path)
        if self.source.gguf:
            self._require_agreement(expected, self.source.weight_files()[0], path)

    def _require_agreement(self, expected: gguf_proof.Expected, model: Path, adapter: Path) -> None:
        found = gguf_proof.agree_over(expected, self.layout, model_file=model, adapter_file=adapter)
        said = found.say(f"in llama.cpp over {model.name} itself", proven=found.holds)
        if not found.holds:
            raise NumericError(f"{self.out}: {said}; nothing was kept")
        self.lines.append(said)

    def write_merged(self, path: Path) -> None:
        """Write base + adapter as one model, and prove it; in q4_k_m in two steps, of which the
        second is llama.cpp's."""
        dtype = self.dtype or short_word(own_dtype(self.source)) or "f32"
        if dtype != "q4_k_m":
            self._write_merged(path, dtype)
            return
        if not llamacpp.is_installed():
            raise ModelError(
                "--dtype q4_k_m is made by llama.cpp's own quantizer: pip install 'loractl[llama]'"
            )
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            exact = Path(name) / "f32.gguf"
            self._write_merged(exact, "f32")
            self._requantize(exact, path, dtype)
        if self.verify:
            self._require_proof(self._expect_merged(path, dtype), dtype, path, None)

    def _requantize(self, model: Path, out: Path, kind: str) -> None:
        try:
            llamacpp.requantize(model, out, kind)
        except llamacpp.CrashError as error:
            raise NumericError(
                f"{self.out}: llama.cpp cannot write {model.name} in {kind}: {error}"
            ) from None

    def _write_merged(self, path: Path, dtype: str) -> None:
        if self.source.gguf:
            untied = self._write_merged_whole(path, dtype)
        else:
            plan = plan_merge(self.source, load_skeleton(self.source), self.adapter)
            if plan is None:
                raise ModelError(
                    f"{self.source.name}: its files use tensor names unknown to loractl"
                )
            self._write_weights(path, plan, dtype)
            untied = plan.untie
        if untied:
            self.lines.append("the output head no longer shares the embedding's weight (untied)")
        if self.layout.context_cut:
            context = self.layout.fields[f"{self.layout.family.architecture}.context_length"]
            self.lines.append(
                f"note: the context is limited to {context} tokens: llama.cpp has no sliding-window"
                f" attention for {self.layout.family.architecture}"
            )
        if self._can_prove():
            self._require_proof(self._expect_merged(path, dtype), dtype, path, None)

    def _write_merged_whole(self, path: Path, dtype: str) -> bool:
        """Write what a GGUF base and the adapter are merged into; whether the head was untied."""
        fields = self.vocabulary
        with tempfile.TemporaryDirectory(dir=path.parent) as name:
            done = merge.write(Path(name), self.source, self.adapter, dtype=torch.float32)
            merged = locate(name)
            plan = Plan({}, {}, {}, False)
            pieces = gguf.weights(merged, load_skeleton(merged), plan, self.layout, dtype)
            gguf.write_model(path, pieces, self.layout, fields, dtype)
        return done.untied

    def _expect_merged(self, path: Path, dtype: str) -> gguf_proof.Expected:
        return gguf_proof.expect(
            self.source, self.adapter, self.layout, dtype=dtype, model_file=path
        )

    def _write_weights(self, path: Path, plan: Plan, dtype: str) -> None:
        pieces = gguf.weights(self.source, self.skeleton, plan, self.layout, dtype)
        gguf.write_model(path, pieces, self.layout, self.vocabulary, dtype)

    def _can_prove(self) -> bool:
        if not self.verify:
            self.lines.append("not proven: --no-verify was given")
        elif not llamacpp.is_installed():
            self.lines.append(
                "not proven: llama-cpp-python is not installed; pip install 'loractl[llama]'"
            )
        else:
            return True
        return False

    def _require_proof(
        self, expected: gguf_proof.Expected, dtype: str, model: Path, adapter: Path | None
    ) -> None:
        proof = gguf_proof.prove(
            expected,
            self.layout,
            dtype=dtype,
            model_file=model,
            adapter_file=adapter,
            tokenizer=self.tokenizer,
            texts=self.texts,
        )
        if not proof.holds:
            raise NumericError(f"{self.out}: {proof}; nothing was kept")
        self.lines.append(str(proof))
        if proof.drowned:
            self.lines.append(
                f"note: rounding to {dtype} changes logits about as much as the adapter does;"
                " --dtype f32 keeps the adapter's full effect"
            )
