"""Token ids in, answers out: batched, with a KV cache, through transformers' `generate`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.generation.streamers import BaseStreamer

from loractl.errors import ModelError
from loractl.generation.speech import Speech, stop_ids
from loractl.lora.hub import Hub, MixedRowsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one at temperature 0, else sampled."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt."""

    text: str  # without the tokens that ended it; other special tokens are part of it
    ids: tuple[int, ...]  # up to, but without, the token that ended it
    finish_reason: str  # "stop": it ended by itself; "length": it reached the limit
    prompt_tokens: int


@dataclass(frozen=True)
class PerRow:
    """Which adapter of a model's hub answers which prompt; None: the base.

    `speeches` has those that differ from the tokenizer and stops that `generate` is given.
    """

    hub: Hub
    names: Sequence[str | None]
    speeches: Mapping[str | None, Speech] = field(default_factory=dict)


def generate(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stops: Sequence[int] | None = None,
    per_row: PerRow | None = None,
) -> list[Answer]:
    """The model's continuation of each prompt, in the given order.

    Prompts of similar length share a batch, padded on the left, whichever adapters answer them; if
    the model cannot mix adapters in a batch, each batch has one adapter. Sampling depends only on
    seed and batch. An answer ends at one of `stops` (None: `stop_ids`), and at the latest where the
    model's positions do. Raises ModelError for a prompt that leaves no positions, or that has no
    tokens.
    """
    _require_room(model, prompts)
    usual = Speech(tokenizer, tuple(stop_ids(model, tokenizer) if stops is None else stops))
    if per_row is None:
        speeches = [usual] * len(prompts)
        return _in_batches(model, speeches, prompts, sampling, lambda batch: None)
    hub, names = per_row.hub, per_row.names
    speeches = [per_row.speeches.get(name, usual) for name in names]
    try:
        return _in_batches(
            model,
            speeches,
            prompts,
            sampling,
            lambda batch: hub.use_rows([names[i] for i in batch]),
        )
    except MixedRowsError:  # raised by the first mixed batch, at its first token
        found: dict[int, Answer] = {}
        for name in dict.fromkeys(names):
            places = [i for i, one in enumerate(names) if one == name]
            hub.use(name)
            asked, said = [prompts[i] for i in places], [speeches[i] for i in places]
            own = _in_batches(model, said, asked, sampling, lambda batch: None)
            found |= zip(places, own, strict=True)
        return [found[place] for place in range(len(prompts))]
    finally:
        hub.use(None)


def _in_batches(
    model: "PreTrainedModel",
    speeches: Sequence[Speech],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    announce: Callable[[Sequence[int]], None],
) -> list[Answer]:
    """Continue each prompt; `announce` is called with the prompt indices before each batch."""
    found: dict[int, Answer] = {}
    limit = _position_limit(model)
    with draw_from_seed(model.device, sampling.seed):
        for batch in _plan_batches(speeches, prompts, sampling, limit):
            announce(batch)
            answers = _answer_batch(
                model, [speeches[i] for i in batch], [prompts[i] for i in batch], sampling
            )
            found |= zip(batch, answers, strict=True)
    return [found[index] for index in range(len(prompts))]


def _plan_batches(
    speeches: Sequence[Speech],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limit: int | None,
) -> Iterator[list[int]]:
    """Indices of the prompts of each batch: of similar length, with the same stops and room.

    A prompt so long that the model's positions cut its answer shares a batch only with prompts of
    its length: a batch ends for all of its rows at once, and would cut a shorter prompt's too.
    """
    groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        length = len(prompts[index])
        is_free = limit is None or length + sampling.max_new_tokens <= limit
        groups.setdefault((speeches[index].stops, 0 if is_free else length), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), sampling.batch_size):
            yield group[start : start + sampling.batch_size]


@contextmanager
def draw_from_seed(device: torch.device, seed: int) -> Iterator[None]:
    """Sample from a seed, and leave the process's random generators as they were.

    transformers uses only those: the CPU's, and the one of the model's device.
    """
    own = None if device.type == "cpu" else torch.get_device_module(device)
    before = own.get_rng_state() if own else None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if own:
                own.manual_seed(seed)
            yield
    finally:
        if own:
            own.set_rng_state(before)


def _answer_batch(
    model: "PreTrainedModel",
    speeches: Sequence[Speech],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> list[Answer]:
    """The answer to each prompt of one batch, whose stops are the same."""
    longest, limit = max(len(prompt) for prompt in prompts), _position_limit(model)
    if limit is not None:
        room = min(sampling.max_new_tokens, limit - longest)
        sampling = replace(sampling, max_new_tokens=room)
    config = _generation_config(speeches[0], sampling)
    ids, mask = _left_padded(prompts, int(config.pad_token_id or 0))
    with torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            streamer=streamer,
        )
    drawn: list[list[int]] = out[:, longest:].tolist()
    return [
        _answer_of(speech, prompt, row)
        for speech, prompt, row in zip(speeches, prompts, drawn, strict=True)
    ]


def _answer_of(speech: Speech, prompt: Sequence[int], ids: list[int]) -> Answer:
    """The sampled tokens up to the first that ends an answer; the rest is padding."""
    end = next((place for place, token in enumerate(ids) if token in speech.stops), len(ids))
    reason = "length" if end == len(ids) else "stop"
    return Answer(speech.text(ids[: end + 1]), tuple(ids[:end]), reason, len(prompt))


def stream(
    model: "PreTrainedModel",
    speech: Speech,
    prompt: Sequence[int],
    sampling: Sampling,
    tell: Callable[[str], None],
) -> Answer:
    """Continue one prompt like `generate`, and pass the text to `tell` piece by piece.

    The joined pieces are the text of the answer. Raises ModelError like `generate`.
    """
    _require_room(model, [prompt])
    pieces = Pieces(speech, tell)
    with draw_from_seed(model.device, sampling.seed):
        (answer,) = _answer_batch(model, [speech], [prompt], sampling, pieces)
    return replace(answer, text=pieces.told)


class Pieces(BaseStreamer):
    """Streams the part of an answer's text that no later token can change."""

    def __init__(self, speech: Speech, tell: Callable[[str], None]) -> None:
        self.told = ""
        self._speech = speech
        self._tell = tell
        self._ids: list[int] | None = None  # None until the prompt, which comes first, has passed

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        # A character may end with the next token, and a decoder may drop a space before it.
        text = self._speech.text(self._ids).rstrip()
        if not text.endswith("\ufffd"):
            self._tell_rest(text)

    def end(self) -> None:
        self._tell_rest(self._speech.text(self._ids or []))

    def _tell_rest(self, text: str) -> None:
        if len(text) > len(self.told) and text.startswith(self.told):
            piece = text[len(self.told) :]
            self.told = text
            self._tell(piece)


def _position_limit(model: "PreTrainedModel") -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _require_room(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> None:
    limit = _position_limit(model)
    for prompt in prompts:
        if not prompt:
            raise ModelError("an empty prompt: a model without a chat template needs text")
        if limit is not None and len(prompt) >= limit:
            raise ModelError(
                f"a prompt has {len(prompt)} tokens, but the model has {limit} positions; shorten"
                " it"
            )


def _generation_config(speech: Speech, sampling: Sampling) -> GenerationConfig:
    stops, pad = list(speech.stops), speech.tokenizer.pad_token_id
    if pad is None:
        pad = stops[0] if stops else 0
    # Anything not set here comes from the model's generation_config.json, which may ask for a
    # penalty or a beam search.
    plain = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=pad,
        do_sample=sampling.temperature > 0,
        **plain,
        **(drawn if sampling.temperature > 0 else {}),
    )


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each (prompts, longest)."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
