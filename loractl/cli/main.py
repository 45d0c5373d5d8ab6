"""The command line: signatures and help of every command. No torch; typer is imported in this room
alone.

Commands are imported when they run, so that `--help` and usage errors answer at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loractl import console, signals
from loractl.cli import completion
from loractl.cli.adapters import adapters_app
from loractl.cli.options import (
    AdapterDir,
    Adapters,
    Base,
    Config,
    Dtype,
    Json,
    MaxNewTokens,
    Model,
    NoVerify,
    Overrides,
    Overwrite,
    Plot,
)
from loractl.cli.planning import estimate, recommend
from loractl.cli.results import evaluate, export
from loractl.errors import (
    INTERRUPTED,
    TERMINATED,
    ConfigError,
    LoractlError,
    Stopped,
    StorageError,
    is_of_the_disk,
    is_out_of_memory,
)

app = typer.Typer(
    add_completion=False,  # ours, which need no guess at exit codes: cli/completion.py
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help: it opens in half the time, and pipes and NO_COLOR need it anyway
    rich_markup_mode=None,
    help="Fine-tune a language model with LoRA, from a YAML file.",
    epilog="Start with: loractl init --data train.jsonl --out config.yaml",
)

app.callback()(completion.options)

NOT_YET = (
    "report",
    "sweep",
)
"""Commands of later versions: named, so that they are not taken for misspelt."""


@app.command(epilog="Example: loractl init --data train.jsonl --out config.yaml")
def init(
    template: Annotated[str, typer.Option(help="lora, dora, adalora or full.")] = "lora",
    model: Annotated[str | None, typer.Option(help="Hub id, directory or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(help="The training rows.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write it; - for stdout.")] = Path(
        "config.yaml"
    ),
) -> int:
    """Write a commented config."""
    from loractl.commands.init import run

    return run(template, model, data, out)


@app.command(epilog="Example: loractl check config.yaml")
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
) -> int:
    """Try everything out: data, masks, lengths, memory, and one real step."""
    from loractl.commands.check import run

    return run(config, overrides or [], as_json=as_json)


@app.command(epilog="Example: loractl train config.yaml --set lora.rank=16")
def train(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Directory of the run.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest valid checkpoint.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="With --resume: allow more steps or epochs than before."),
    ] = False,
    overwrite: Overwrite = False,
) -> int:
    """Train as the config says; write an adapter in PEFT's layout."""
    from loractl.commands.train import run

    return run(config, overrides or [], out=out, resume=resume, extend=extend, overwrite=overwrite)


@app.command(epilog="Example: loractl merge runs/name --out merged")
def merge(
    adapter: AdapterDir,
    out: Annotated[Path, typer.Option(help="Directory of the merged model.")],
    base: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: the base's.")
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> int:
    """Merge an adapter into its base, and prove that the result is the same model."""
    from loractl.commands.merge import run

    return run(adapter, out, base=base, dtype=dtype, overwrite=overwrite, verify=not no_verify)


app.command(epilog="Example: loractl export runs/name --to merged-gguf --out model.gguf")(export)


Temperature = Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the likeliest tokens.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the draws.")]


@app.command(epilog="Example: loractl generate --adapter tuned=runs/name --prompt 'Hello'")
def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines of {prompt} or {messages}, with an adapter each."),
    ] = None,
    model: Model = None,
    adapter: Adapters = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> int:
    """Answer prompts with a base model or an adapter."""
    from loractl.commands.arguments import GenerationOptions
    from loractl.commands.generate import run

    return run(
        prompts=prompt or [],
        prompts_file=prompts,
        model=model,
        adapters=adapter or [],
        options=GenerationOptions(max_new_tokens, temperature, top_p, seed, dtype),
        as_json=as_json,
    )


@app.command(epilog="Example: loractl chat --adapter tuned=runs/name --adapter other=runs/other")
def chat(
    model: Model = None,
    adapter: Adapters = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = "auto",
) -> int:
    """Talk with a base and its adapters, held in memory together; /help lists the commands."""
    from loractl.commands.arguments import GenerationOptions
    from loractl.commands.chat import run

    options = GenerationOptions(max_new_tokens, temperature, top_p, seed, dtype)
    return run(model=model, adapters=adapter or [], options=options)


app.command("eval", epilog="Example: loractl eval runs/name --data heldout.jsonl")(evaluate)
app.add_typer(adapters_app, name="adapters")
app.command(epilog="Example: loractl estimate --model 7B --rank 16 --seq 2048")(estimate)
app.command(epilog="Example: loractl recommend --task complex --model 7B --memory 24GB")(recommend)


@app.command(epilog="Example: loractl inspect runs/name --against runs/other")
def inspect(
    adapter: AdapterDir,
    against: Annotated[
        Path | None, typer.Option(help="Another adapter: do they change the same directions?")
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Show ranks, norms, singular values and effective ranks of an adapter."""
    from loractl.commands.inspect import run

    return run(adapter, against=against, plot=plot, as_json=as_json)


@app.command(epilog="Example: loractl schema > loractl.schema.json")
def schema() -> int:
    """Print the JSON Schema of the config, for editors."""
    from loractl.commands.schema import run

    return run()


@app.command(epilog="Example: loractl doctor")
def doctor(as_json: Json = False) -> int:
    """Say what this machine can do."""
    from loractl.commands.doctor import run

    return run(as_json=as_json)


def main(argv: Sequence[str]) -> int:
    """Run one command; return its exit code. What a person can fix is printed, else raised."""
    if argv and argv[0] in NOT_YET:
        console.errors([f"loractl {argv[0]}: not available in this version"])
        return 2
    command = typer.main.get_command(app)
    if os.environ.get(completion.ASKED):
        return completion.answer_shell(command)
    try:
        if not argv:
            help_of_all = typer.Context(command, info_name="loractl", **command.context_settings)
            console.note(f"{command.get_help(help_of_all)}\n")
            raise ConfigError("no command given; see loractl --help")
        code: int = command.main(list(argv), prog_name="loractl", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer's word for KeyboardInterrupt
            console.note("interrupted")
        return code
    except typer.TyperException as error:
        console.errors([f"{error.format_message().rstrip('.')}; see {_help_of(argv)}"])
        return error.exit_code
    except LoractlError as error:
        console.errors(error.messages)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code
    except (BrokenPipeError, SystemExit):  # typer turns the first into the second
        # The reader of our output has left (| head): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell_storage(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        console.errors(["out of memory; use a smaller model, a lower dtype or a larger machine"])
        return ConfigError.exit_code


def _help_of(argv: Sequence[str]) -> str:
    """The help of the command, or of the command within a group, that these words name."""
    here, path = typer.main.get_command(app), ["loractl"]
    for word in argv:
        if word not in getattr(here, "commands", {}):
            break
        here = here.commands[word]  # type: ignore[attr-defined]
        path.append(word)
    return " ".join([*path, "--help"])


def _tell_storage(error: OSError) -> int:
    """Say that the disk is full or not writable; anything else is a bug of ours and is raised."""
    if not is_of_the_disk(error):
        raise error
    console.errors([f"{error.filename or 'disk'}: {error.strerror}; nothing half-written was kept"])
    return StorageError.exit_code


def entry() -> None:
    """The `loractl` program. SIGTERM ends it as Ctrl-C does, so that nothing half-written stays."""
    signal.signal(signal.SIGTERM, signals.leave)
    code = main(sys.argv[1:])
    signals.ignore()
    if code in (INTERRUPTED, TERMINATED):
        # All is tidied up, and taking torch down again can take seconds on a busy machine.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
