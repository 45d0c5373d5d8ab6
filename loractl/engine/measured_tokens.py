"""The tokens on which two models are compared: answers of rows that a run held out, else random."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from loractl.artifacts import probe
from loractl.data import batches, beyond
from loractl.data.store import lengths_of
from loractl.engine.eval_rows import EvalRows, rows_of_runs
from loractl.errors import ConfigError, DataError, ModelError
from loractl.evaluation.eval_request import EvalRequest
from loractl.models import load
from loractl.records import UNTRAINED
from loractl.text import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from loractl.artifacts.peft.adapter import Adapter

TOKENS = 1024
"""About as many go through each model, padding included: eight times those of a proof, and with
150,000 tokens their logits take 0.6 GB."""


@dataclass(frozen=True)
class MeasuredTokens:
    """Token ids, which of their logits count, and where they are from."""

    ids: Tensor  # (rows, length), padded on the right, which no causal model sees
    counts: Tensor  # (rows, length), whether the logits after this token count
    words: str  # which they are, with their number
    are_real: bool  # whether somebody wrote the text, so that its loss means something

    @property
    def targets(self) -> Tensor:
        """The token after each one that counts, (tokens,)."""
        return self.ids.roll(-1, dims=1)[self.counts]


def tokens_of(adapter: "Adapter", model: "PreTrainedModel", merged: load.Source) -> MeasuredTokens:
    """Held-out rows of the adapter's run, the trained tokens of which count; random tokens, with
    the reason, if there are none. `merged` has the tokenizer and template of the adapter."""
    try:
        positions = load.limits(merged).positions
        rows = rows_of_runs([adapter.directory], EvalRequest(data=None), positions)
        return _of_rows(rows, load.load_tokenizer(merged), load.n_rows(model))
    except (ConfigError, DataError, ModelError) as error:
        ids = probe.probe_ids(model, adapter.own_tokens)
        why = error.messages[0].removesuffix("; give --data FILE")
        words = (
            f"{ids.numel()} random tokens, which tell little of real text (no held-out rows: {why})"
        )
        return MeasuredTokens(ids, torch.ones_like(ids, dtype=torch.bool), words, False)


def _of_rows(rows: EvalRows, tokenizer: "Tokenizer", n_rows: int) -> MeasuredTokens:
    """Rows around the median length, as many as TOKENS hold. Raises DataError."""
    examples = rows.examples(tokenizer)
    beyond.require_rows(examples, tokenizer, n_rows, cure=beyond.IN_USE)
    lengths = lengths_of(examples)
    by_length = np.argsort(lengths, kind="stable")
    by_length = by_length[lengths[by_length] <= TOKENS]
    if not len(by_length):
        raise DataError(f"{rows.name}: all rows are longer than {TOKENS} tokens")
    n = TOKENS // max(1, int(lengths[by_length[len(by_length) // 2]]))
    start = max(0, (len(by_length) - n) // 2)
    chosen = by_length[start : start + n].tolist()
    batch = batches.collate([[examples[index]] for index in chosen])
    counts = torch.zeros_like(batch.labels, dtype=torch.bool)
    counts[:, :-1] = batch.labels[:, 1:] != UNTRAINED
    words = f"{int(counts.sum())} trained tokens of {counted(len(chosen), 'held-out row')}"
    return MeasuredTokens(batch.input_ids, counts, words, True)
