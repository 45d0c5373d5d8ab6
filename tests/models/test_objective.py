"""The loss of a batch is that of plain transformers, whether rows come alone, padded or packed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from loractl.data import examples
from loractl.data.batches import collate
from loractl.data.pack import pack
from loractl.data.reading import Reading
from loractl.lora.adalora import AdaloraLayer
from loractl.lora.inject import adaptable, inject_
from loractl.lora.ranks import RankSpec, resolve
from loractl.lora.whole import train_whole_
from loractl.models.forward import hidden_states
from loractl.models.load import head_name
from loractl.models.objective import TokenLoss, loss_sum
from loractl.records import UNTRAINED, Batch, Example
from tests.scaled import SCALED, scaled
from tests.tiny import ARCHITECTURES, chat_rows, write_jsonl

PACKED = [name for name in ARCHITECTURES if name != "opt"]  # OPT counts positions from its mask


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows, the longest of which is several times as long as the shortest."""
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", chat_rows(8))


@pytest.fixture(scope="module")
def made(rows: Path, tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    store, _ = examples.load(str(rows), tokenizer, Reading("auto", 256, "assistant", "error"))
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
        objective = TokenLoss(model)
        for rows, (part, n) in zip(batches, parts, strict=True):  # the other form gives the same
            same, n_same = objective(collate(rows))
            assert float(same) == pytest.approx(float(part), rel=1e-6) and n_same == n
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


def gradients(model: Any, loss: Callable[[Batch], tuple[Tensor, int]], batch: Batch) -> Any:
    """(loss, tokens, gradients by name) of a batch."""
    model.zero_grad(set_to_none=True)
    found, n = loss(batch)
    found.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(found.detach()), n, grads


def assert_same_as_plain(model: Any, batch: Batch, *, head: bool = True) -> None:
    """The objective's loss and gradients are those of the plain form."""
    objective = TokenLoss(model)
    assert (objective.head is not None) == head
    found, n, grads = gradients(model, objective, batch)
    expected, n_expected, plain = gradients(model, lambda batch: loss_sum(model, batch), batch)
    assert n == n_expected and found == pytest.approx(expected, rel=1e-6)
    assert grads.keys() == plain.keys() and any(bool(g.any()) for g in plain.values())
    scale = max(float(g.abs().max()) for g in plain.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, plain[name], atol=2e-6 * scale, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_weights_get_the_gradients_of_the_plain_form(
    name: str, made: list[Example], load: Any
) -> None:
    assert_same_as_plain(load(name), collate([made[:2], made[2:4]]))


@pytest.mark.parametrize("name", SCALED)
def test_scaled_and_capped_logits_have_the_gradients_of_the_plain_form(
    name: str, made: list[Example]
) -> None:
    model = scaled(name)
    assert_same_as_plain(model, collate([[made[0]]]))


WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"formula": "dora"},
    "adalora": {"formula": "adalora"},
    "embedding": {"targets": ["embed_tokens", "q_proj"]},
    "norm": {"whole": ["model.norm"]},
    "embedding whole": {"whole": ["model.embed_tokens"]},
    "head": {"targets": ["lm_head", "q_proj"]},
    "head whole": {"whole": ["lm_head"]},
}


@pytest.mark.parametrize("base_name", ["llama", "llama-tied"])
@pytest.mark.parametrize("way", WAYS)
def test_adapters_get_the_gradients_of_the_plain_form(
    way: str, base_name: str, made: list[Example], load: Any
) -> None:
    model, how = load(base_name), WAYS[way]
    spec = RankSpec(4, 8, how.get("targets", "all-linear"))
    ranks = resolve(spec, adaptable(model), head=head_name(model))
    layers = inject_(model, ranks, formula=how.get("formula", "lora"))
    train_whole_(model, how.get("whole", []))
    torch.manual_seed(0)
    for layer in layers.values():
        layer.B.data.normal_(std=0.1)
        if isinstance(layer, AdaloraLayer):
            layer.E.data.normal_(std=0.1)
    assert_same_as_plain(model, collate([made[:2]]), head="head" not in way)


def test_in_bfloat16_it_is_no_further_from_float32_than_the_plain_form(
    made: list[Example], base: Callable[..., Path]
) -> None:
    batch = collate([[made[0]]])

    def found(dtype: torch.dtype, loss: Any) -> tuple[float, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=dtype).eval()
        value, _, grads = gradients(model, loss(model), batch)
        return value, torch.cat([g.float().flatten() for g in grads.values()])

    plain = lambda model: lambda batch: loss_sum(model, batch)  # noqa: E731
    best, right = found(torch.float32, plain)
    rounded, theirs = found(torch.bfloat16, plain)
    value, ours = found(torch.bfloat16, TokenLoss)
    assert abs(value - best) <= 1.2 * abs(rounded - best) + 1e-3 * best
    assert float((ours - right).norm()) <= 1.1 * float((theirs - right).norm())


def test_rows_without_trained_tokens_have_no_loss_and_gradients_of_zero(
    made: list[Example], load: Any
) -> None:
    model = load("llama-tied")
    silent = Example(made[0].ids, [UNTRAINED] * len(made[0].ids), line=1)
    loss, n, grads = gradients(model, TokenLoss(model), collate([[silent]]))
    assert (loss, n) == (0, 0)
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert not any(bool(g.any()) for g in grads.values())
    assert_same_as_plain(model, collate([[silent], [made[1]]]))


def test_other_hidden_states_can_be_given(made: list[Example], load: Any) -> None:
    model, batch = load("gpt2"), collate([[made[0]]])

    class Doubled:
        goes_together = False

        def together(self, batches: Sequence[Batch]) -> list[tuple[Tensor, Batch]]:
            return [(2 * hidden_states(model, one), one) for one in batches]

    doubled = TokenLoss(model, trunk=Doubled())
    with torch.no_grad():
        plain = float(loss_sum(model, batch)[0])
        assert float(doubled(batch)[0]) != pytest.approx(plain, rel=1e-3)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight / 2)  # untied, exactly half
        halved = TokenLoss(model, trunk=doubled.trunk)
        assert float(halved(batch)[0]) == pytest.approx(plain, rel=1e-6)


def test_the_losses_of_tokens_are_those_whose_sum_it_is(made: list[Example], load: Any) -> None:
    model = load("llama")
    batch, objective = collate([[one] for one in made]), TokenLoss(model)
    each = objective.each(batch)
    total, n = objective(batch)
    assert each.shape == (n,) and not each.requires_grad
    torch.testing.assert_close(each.sum(), total.detach())
    objective.head = None  # the plain form
    torch.testing.assert_close(objective.each(batch), each)


def test_under_autocast_the_plain_form_is_taken(made: list[Example], load: Any) -> None:
    model, batch = load("llama"), collate([[made[0]]])
    objective = TokenLoss(model, autocast=torch.bfloat16)
    assert objective.head is None
    with torch.no_grad():
        assert objective(batch)[0] == loss_sum(model, batch, autocast=torch.bfloat16)[0]
