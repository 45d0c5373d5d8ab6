"""Adapters with rows of new tokens in every command that takes one: right, or refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loractl.artifacts.peft.adapter import read
from loractl.artifacts.peft.attach import load_
from loractl.cli.main import main
from loractl.engine.speakers import open_hub
from loractl.generation.sample import Sampling
from loractl.records import Message
from tests.commands.conftest import assert_refused, said
from tests.runs import train
from tests.tiny import make_tokenizer, write_jsonl

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
N = len(make_tokenizer())
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def data(path: Path, call: str = "<|call|>") -> Path:
    made = [
        {"prompt": f"{call} {i} plus {i}", "completion": f"is {2 * i} <|end|>"} for i in range(12)
    ]
    return write_jsonl(path, made)


@pytest.fixture
def trained(config_file: Make, base: Make, tmp_path: Path) -> Callable[..., Path]:
    """trained("llama", name="run") -> the run of an adapter with two new tokens."""

    def make(architecture: str | Path = "llama", name: str = "run", call: str = "<|call|>") -> Path:
        model = base(architecture) if isinstance(architecture, str) else architecture
        rows = data(tmp_path / f"{name}.jsonl", call)
        config = config_file(
            f"model: {{add_tokens: ['{call}', '<|end|>']}}",
            f"data: {{train: {rows}, eval: {data(tmp_path / 'held.jsonl', call)}}}",
            "train: {learning_rate: 0.05}",
            f"out: {tmp_path / name}",
            model=model,
        )
        assert train(config) == 0
        return tmp_path / name

    return make


def scores(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, N, (2, 16), generator=generator)
    ids[:, 3], ids[:, 9] = N, N + 1
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def ours(base: Path, run: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    load_(model, read(run))
    return model


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gemma3"])
def test_merged_it_is_one_model_that_has_the_tokens(
    architecture: str, trained: Any, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    run, out = trained(architecture), tmp_path / "merged"
    assert main(["merge", str(run), "--out", str(out)]) == 0
    assert "proven: " in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == N + 2 == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|end|>") == N + 1
    assert_same(scores(model), scores(ours(base(architecture), run)))
    tied = architecture != "llama"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) != tied


def test_merged_in_bfloat16_the_rows_are_rounded_once(
    trained: Any, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    run = trained(base("llama", "bfloat16"))
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert "proven: " in capsys.readouterr().err
    own = load_file(run / "adapter" / "adapter_model.safetensors")
    rows = next(t for n, t in own.items() if "embed_tokens" in n)
    found = load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found[N:], rows.bfloat16())


def test_a_wrong_row_is_found_by_the_proof(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from loractl.artifacts.model.plan import NewRows

    run, right = trained(), NewRows.merged

    def wrong(self: NewRows, old: Tensor, dtype: torch.dtype) -> Tensor:
        found = right(self, old, dtype).detach().clone()
        found[-1] += 1e-2
        return found

    monkeypatch.setattr(NewRows, "merged", wrong)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 4
    assert "lm_head.weight" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_a_module_trained_whole_is_merged_with_its_rows(
    config_file: Make, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    for architecture, names in (
        ("llama", ["embed_tokens", "lm_head"]),
        ("llama-tied", ["embed_tokens"]),
    ):
        config = config_file(
            "model: {add_tokens: ['<|call|>', '<|end|>']}",
            f"data: {{train: {data(tmp_path / 'rows.jsonl')}}}",
            f"lora: {{modules_to_save: {json.dumps(names)}}}",
            f"out: {tmp_path / architecture}",
            model=base(architecture),
        )
        assert train(config) == 0
        out = tmp_path / f"{architecture}-merged"
        assert main(["merge", str(tmp_path / architecture), "--out", str(out)]) == 0
        assert "proven: " in capsys.readouterr().err
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        assert_same(scores(model), scores(ours(base(architecture), tmp_path / architecture)))


def test_the_whole_vocabulary_goes_into_a_gguf(
    trained: Any, wide: Any, tmp_path: Path, capsys: Capture
) -> None:
    from gguf import GGUFReader

    run, out = trained(wide("llama")), tmp_path / "m.gguf"
    assert main(["export", str(run), "--to", "merged-gguf", "--out", str(out)]) == 0
    reader = GGUFReader(out)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    rows = load_file(run / "adapter" / "adapter_model.safetensors")
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    at = tokens.index("<|call|>")
    own = next(t for n, t in rows.items() if "embed_tokens" in n)
    assert torch.equal(torch.tensor(table.data[at]), own[0])
    assert len(tokens) == len(table.data)


def test_a_gguf_grows_where_the_base_has_no_spare_rows(
    trained: Any, base: Make, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    run, out = trained("llama-tied"), tmp_path / "m.gguf"
    assert main(["export", str(run), "--to", "merged-gguf", "--out", str(out)]) == 0
    reader = GGUFReader(out)
    assert reader.fields["tokenizer.ggml.tokens"].contents()[N:] == ["<|call|>", "<|end|>"]
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    assert len(table.data) == N + 2
    assert not any(t.name == "output.weight" for t in reader.tensors)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_exported_for_peft_it_keeps_the_rows(
    architecture: str, trained: Any, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    run, out = trained(architecture), tmp_path / "peft"
    assert main(["export", str(run), "--to", "peft", "--out", str(out)]) == 0
    notes = capsys.readouterr().err
    assert "rows of 2 new tokens are read by PEFT after base.resize_token_embeddings(" in notes
    assert "vLLM" in notes and "in PEFT differ from those of base + adapter" in notes
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(base(architecture), dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert_same(
        scores(PeftModel.from_pretrained(model, out).eval()), scores(ours(base(architecture), run))
    )


def test_ollama_gets_the_whole_model(trained: Any, wide: Any, tmp_path: Path) -> None:
    run, out = trained(wide("llama")), tmp_path / "ollama"
    assert main(["export", str(run), "--to", "ollama", "--out", str(out)]) == 0
    assert (out / "Modelfile").is_file() and list(out.glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["export", "RUN", "--to", "gguf", "--out", "OUT"], "use --to merged-gguf"),
        (
            [
                "adapters",
                "combine",
                "--adapter",
                "a=RUN",
                "--adapter",
                "b=RUN",
                "--how",
                "cat",
                "--out",
                "OUT",
            ],
            "rows of new tokens cannot be combined",
        ),
    ],
)
def test_what_cannot_hold_the_rows_is_refused_with_a_way_out(
    words: list[str], way_out: str, trained: Any, tmp_path: Path, capsys: Capture
) -> None:
    run = trained()
    given = {
        "RUN": str(run),
        "OUT": str(tmp_path / "out"),
        "a=RUN": f"a={run}",
        "b=RUN": f"b={run}",
    }
    assert main([given.get(word, word) for word in words]) == 2
    assert_refused(capsys, "rows of new tokens", way_out)
    assert not (tmp_path / "out").exists()


def test_resizing_keeps_the_rows(trained: Any, base: Make, tmp_path: Path) -> None:
    run, out = trained(), tmp_path / "out"
    assert main(["adapters", "resize", str(run), "--rank", "4", "--out", str(out)]) == 0
    assert_same(scores(ours(base("llama"), out)), scores(ours(base("llama"), run)))
    assert "<|call|>" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_inspect_names_the_rows(trained: Any, capsys: Capture) -> None:
    run = trained()
    capsys.readouterr()
    assert main(["inspect", str(run), "--json"]) == 0
    report = said(capsys)
    assert len(report["beside"]) == 2 and "trainable_tokens_delta" in report["beside"][0]
    assert report["token_rows"] == {"embed_tokens": [N, N + 1], "lm_head": [N, N + 1]}
    assert main(["inspect", str(run)]) == 0
    assert "rows of single tokens: 2 in embed_tokens, 2 in lm_head" in capsys.readouterr().out


def test_extracting_from_a_grown_model_is_refused(
    trained: Any, base: Make, tmp_path: Path, capsys: Capture
) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", str(trained()), "--out", str(merged), "--no-verify"]) == 0
    words = ["--base", str(base("llama")), "--tuned", str(merged), "--out", str(tmp_path / "out")]
    assert main(["adapters", "extract", *words, "--rank", "4"]) == 2
    assert_refused(capsys, "same shapes")


def test_eval_measures_the_base_without_and_the_adapter_with_the_tokens(
    trained: Any, base: Make, tmp_path: Path, capsys: Capture, adapter_dir: Make
) -> None:
    run, plain = trained("llama-tied"), adapter_dir(base("llama-tied"), size=0.1)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b c d"}] * 4)
    words = ["--data", str(rows), "--metrics", "loss", "--dtype", "float32", "--json"]
    capsys.readouterr()
    assert main(["eval", f"plain={plain}", *words]) == 0
    alone = {one["model"]: one["loss"]["value"] for one in said(capsys)}
    assert main(["eval", f"tokens={run}", f"plain={plain}", *words]) == 0
    both = {one["model"]: one["loss"]["value"] for one in said(capsys)}
    assert both["plain"] == alone["plain"] and both["base"] == alone["base"]
    assert both["tokens"] != both["base"]
    assert main(["eval", str(run), "--metrics", "loss,exact_match"]) == 0


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_several_adapters_with_other_new_tokens_share_one_base(
    architecture: str, trained: Any, base: Make, adapter_dir: Make
) -> None:
    one, two = trained(architecture, "one"), trained(architecture, "two", "<|other|>")
    three = adapter_dir(base(architecture), "three", size=0.1)
    paths = {"one": one, "two": two, "three": three}
    together = open_hub(None, paths, "float32")
    sampling = Sampling(max_new_tokens=8)
    names = [None, "one", "two", "three"]
    asked = [Message("user", "<|call|> 1 plus <|other|> 1")]
    prompts = [together.prompt_ids(name, asked) for name in names]
    assert N in prompts[1] and N in prompts[2] and N not in prompts[0]
    mixed = together.answers(prompts, names, sampling)
    for name, prompt, answer in zip(names, prompts, mixed, strict=True):
        alone = open_hub(str(base(architecture)), {name: paths[name]} if name else {}, "float32")
        (expected,) = alone.answers([prompt], [name], sampling)
        assert answer.ids == expected.ids, name


def test_the_base_in_a_grown_hub_never_says_a_new_token(trained: Any) -> None:
    opened = open_hub(None, {"a": trained()}, "float32")
    ids = torch.randint(0, N, (3, 9), generator=torch.Generator().manual_seed(0))
    opened.hub.use(None)
    with torch.no_grad():
        logits = opened.model(input_ids=ids).logits
    assert logits.shape[-1] == N + 2 and (logits[..., N:] == -torch.inf).all()
    opened.hub.use_rows(["a", None, "a"])
    with torch.no_grad():
        logits = opened.model(input_ids=ids).logits
    assert logits[0, :, N:].isfinite().all() and (logits[1, :, N:] == -torch.inf).all()


def test_an_adapter_of_the_head_does_not_share_a_base_that_grows(
    trained: Any, base: Make, adapter_dir: Make, capsys: Capture
) -> None:
    head = adapter_dir(base("llama"), "head", target_modules=["head", "q_proj"])
    words = ["--adapter", f"tokens={trained()}", "--adapter", f"head={head}"]
    assert main(["chat", *words]) == 2
    assert_refused(capsys, str(head), "use them one at a time")


def test_generate_and_check_say_what_there_is(
    trained: Any, config_file: Make, tmp_path: Path, base: Make, capsys: Capture
) -> None:
    run = trained()
    capsys.readouterr()
    words = ["--prompt", "<|call|> 1 plus 1", "--max-new-tokens", "4", "--json"]
    assert main(["generate", "--adapter", f"a={run}", *words]) == 0
    assert said(capsys)["tokens"] <= 4
    config = config_file(
        "model: {add_tokens: ['<|call|>', '<|end|>', '<|idle|>']}",
        f"data: {{train: {data(tmp_path / 'rows.jsonl')}}}",
        f"out: {tmp_path / 'other'}",
    )
    assert main(["check", str(config)]) == 0
    out = capsys.readouterr().out
    assert "3 tokens added (model.add_tokens), with 3 rows of embed_tokens and lm_head" in out
    assert "no training row has '<|idle|>'" in out
    assert main(["train", str(config)]) == 0
    assert "note: no training row has '<|idle|>'" in capsys.readouterr().err


def test_a_gguf_base_grows_too(
    trained: Any, gguf_base: Any, tmp_path: Path, capsys: Capture
) -> None:
    run = trained(gguf_base("llama"))
    assert main(["merge", str(run), "--out", str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    assert "proven: " in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.vocab_size == N + 2


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_estimate_counts_the_rows(
    architecture: str, base: Make, config_file: Make, tmp_path: Path, capsys: Capture
) -> None:
    added = "model: {add_tokens: ['<|call|>', '<|end|>']}"
    rows = f"data: {{train: {data(tmp_path / 'rows.jsonl')}}}"
    config = config_file(added, rows, model=base(architecture))
    assert main(["estimate", str(config), "--json"]) == 0
    found = said(capsys)["methods"]["lora"]["trainable_parameters"]
    assert train(config) == 0
    assert f"adapter  {found:,} trained parameters" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning")
def test_two_resized_bases_that_peft_saved_do_not_share_one(
    base: Make, tmp_path: Path, capsys: Capture
) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        model = AutoModelForCausalLM.from_pretrained(base("llama"), dtype=torch.float32)
        torch.manual_seed(seed)
        model.resize_token_embeddings(N + 2, mean_resizing=False)
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
        tuned = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.01 if parameter.requires_grad else 0.0)
        tuned.save_pretrained(tmp_path / name)
        with torch.no_grad():  # alone it gives PEFT's logits, rows of the resized base included
            assert_same(scores(ours(base("llama"), tmp_path / name)), scores(tuned.eval()))
    words = [w for name in ("one", "two") for w in ("--adapter", f"{name}={tmp_path / name}")]
    assert main(["chat", *words, "--model", str(base("llama"))]) == 2
    assert_refused(capsys, str(tmp_path / "one"), "use them one at a time")
