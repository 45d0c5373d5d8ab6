"""The loss of a batch is that of plain transformers, whether rows come alone, padded or packed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from loractl.data import examples
from loractl.data.batches import collate
from loractl.data.pack import pack
from loractl.models.objective import loss_sum
from loractl.records import Example
from tests.conftest import ARCHITECTURES, chat_rows, write_jsonl

PACKED = [name for name in ARCHITECTURES if name != "opt"]  # OPT counts positions from its mask


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows, the longest of which is several times as long as the shortest."""
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", chat_rows(8))


@pytest.fixture(scope="module")
def made(rows: Path, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    store, _ = examples.load(
        str(rows), tokenizer, examples.Reading("auto", 256, "assistant", "error")
    )
    found = list(store)
    lengths = [len(example.ids) for example in found]
    assert max(lengths) > 2.5 * min(lengths)
    return found


@pytest.fixture(scope="module")
def load(base: Callable[..., Path]) -> Callable[[str], Any]:
    return lambda name: AutoModelForCausalLM.from_pretrained(base(name)).eval()


def reference(directory: Path, file: Path) -> tuple[float, int]:
    """The loss of all rows in one padded batch, written against transformers alone, its mask
    included.

    An answer is what the tokens of the whole conversation have beyond those of its prompt, less the
    newline that ChatML writes after `<|im_end|>`.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    whole, prompts = [], []
    for line in file.read_text("utf-8").splitlines():
        turns = json.loads(line)["messages"]
        options = {"tokenize": True, "return_dict": True}
        whole.append(tokenizer.apply_chat_template(turns, **options)["input_ids"])
        prompts.append(
            tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, **options)[
                "input_ids"
            ]
        )
    longest = max(map(len, whole))
    ids = torch.full((len(whole), longest), 7)
    mask = torch.zeros(len(whole), longest)
    for i, row in enumerate(whole):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    total, n = 0.0, 0
    for i, (row, prompt) in enumerate(zip(whole, prompts, strict=True)):
        for place in range(len(prompt), len(row) - 1):
            total -= float(torch.log_softmax(logits[i, place - 1].double(), dim=-1)[row[place]])
            n += 1
    return total, n


def total(model: Any, batches: list[list[list[Example]]]) -> tuple[float, int]:
    """(sum, count) over micro-batches of rows of examples."""
    with torch.no_grad():
        parts = [loss_sum(model, collate(rows)) for rows in batches]
    return sum(float(part) for part, _ in parts), sum(n for _, n in parts)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_of_padded_rows_is_that_of_an_independent_computation(
    name: str, base: Any, rows: Path, made: list[Example], load: Any
) -> None:
    expected, n_expected = reference(base(name), rows)
    found, n = total(load(name), [[[example] for example in made]])
    assert n == n_expected
    assert found / n == pytest.approx(expected / n, abs=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_packed_padded_and_single_rows_give_the_same_loss(
    name: str, made: list[Example], load: Any
) -> None:
    model = load(name)
    single, n = total(model, [[[example]] for example in made])
    padded, n_padded = total(model, [[[example] for example in made]])
    packed_rows = [[made[i] for i in row] for row in pack([len(e.ids) for e in made], 256)]
    assert len(packed_rows) < len(made) and max(map(len, packed_rows)) > 2
    packed, n_packed = total(model, [packed_rows])
    assert n == n_padded == n_packed
    assert padded / n == pytest.approx(single / n, abs=1e-5)
    assert packed / n == pytest.approx(single / n, abs=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_packed_and_single_rows_give_the_same_gradients(
    name: str, made: list[Example], load: Any
) -> None:
    def gradients(batches: list[list[list[Example]]]) -> list[Tensor]:
        model = load(name)
        for rows in batches:
            loss_sum(model, collate(rows))[0].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    packed = gradients([[made[:4], made[4:]]])
    single = gradients([[[example]] for example in made])
    scale = max(float(g.abs().max()) for g in single)
    for a, b in zip(packed, single, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * scale, rtol=1e-4)


def test_an_example_does_not_see_the_one_packed_before_it(made: list[Example], load: Any) -> None:
    model = load("mistral")
    with torch.no_grad():
        alone = [float(loss_sum(model, collate([[example]]))[0]) for example in made[:3]]
        for first in made[1:3]:
            both = float(loss_sum(model, collate([[first, made[0]]]))[0])
            assert both - alone[made.index(first)] == pytest.approx(alone[0], abs=1e-4)


def test_the_softmax_is_in_float32_and_autocast_computes_the_products_lower(
    made: list[Example], load: Any
) -> None:
    model = load("llama")
    batch = collate([[made[0]]])
    with torch.no_grad():
        exact, n = loss_sum(model, batch)
        rounded, same = loss_sum(model, batch, autocast=torch.bfloat16)
    assert exact.dtype == rounded.dtype == torch.float32 and n == same
    assert rounded != exact
    assert float(rounded) == pytest.approx(float(exact), rel=0.05)
