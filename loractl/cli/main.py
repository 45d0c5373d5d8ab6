"""The command line: signatures and help of every command. No torch; typer is imported only in this
package.

Each command is imported when it runs, so that `--help` and usage errors are immediate.
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
from loractl.cli import completion, usage
from loractl.cli.adapters import adapters_app
from loractl.cli.answers import chat, generate
from loractl.cli.options import (
    AdapterDir,
    Base,
    Config,
    Json,
    NoVerify,
    Overrides,
    Overwrite,
    Plot,
)
from loractl.cli.planning import estimate, explain, init, recommend
from loractl.cli.results import evaluate, export, plot, report
from loractl.cli.value_names import name_values_
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
    add_completion=False,  # the options for it are in cli/completion.py
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help loads in half the time, and pipes and NO_COLOR need it anyway.
    rich_markup_mode=None,
    help="Fine-tune a language model with LoRA, from a YAML file.",
    epilog="Start with: loractl init --data train.jsonl --out config.yaml",
)

app.callback()(completion.options)

NOT_YET = ("sweep",)
"""Planned commands, listed here so that they are not reported as misspelled."""


app.command(epilog="Example: loractl init --data train.jsonl --out config.yaml")(init)


@app.command(epilog="Example: loractl check config.yaml")
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
) -> int:
    """Dry-run a config: data, masks, memory and one real step."""
    from loractl.commands.check import run

    return run(config, overrides or [], as_json=as_json)


@app.command(epilog="Example: loractl train config.yaml --set lora.rank=16")
def train(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The run directory.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest valid checkpoint.")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="With --resume, allow more steps or epochs than before."),
    ] = False,
    overwrite: Overwrite = False,
) -> int:
    """Train from a config. Writes an adapter, or a complete model with method: full."""
    from loractl.commands.train import run

    return run(config, overrides or [], out=out, resume=resume, extend=extend, overwrite=overwrite)


@app.command(epilog="Example: loractl merge runs/name --out merged")
def merge(
    adapter: AdapterDir,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Write the merged model to this directory.")
    ],
    base: Base = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="Which base, where training quantized it: trained, its weights as quantized, which"
            " gives the model that was trained; or original, those before. By default, trained.",
            autocompletion=completion.bases,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="One of float32, bfloat16 or float16. By default, that of the base."),
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> int:
    """Merge an adapter into its base model. Verifies that the logits agree.

    A merged model is not quantized. To keep a base in 4 or 8 bits, do not merge: chat, generate
    and eval take the adapter as it is.
    """
    from loractl.commands.merge import run

    verify = not no_verify
    return run(adapter, out, base=base, into=into, dtype=dtype, overwrite=overwrite, verify=verify)


app.command(epilog="Example: loractl export runs/name --to merged-gguf --out model.gguf")(export)

app.command(epilog="Example: loractl generate runs/name --prompt 'Hello'")(generate)
app.command(epilog="Example: loractl chat runs/name other=runs/other")(chat)
app.command("eval", epilog="Example: loractl eval runs/name")(evaluate)
app.add_typer(adapters_app, name="adapters")
app.command(epilog="Example: loractl estimate --model 7B --rank 16 --seq 2048")(estimate)
app.command(epilog="Example: loractl recommend --task complex --model 7B --memory 24GB")(recommend)
app.command(epilog="Example: loractl explain --model 8B --out explain.html")(explain)


@app.command(epilog="Example: loractl inspect runs/name --against runs/other")
def inspect(
    adapter: AdapterDir,
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare with this adapter.")
    ] = None,
    plot: Plot = None,
    as_json: Json = False,
) -> int:
    """Show an adapter's ranks, norms and singular values."""
    from loractl.commands.inspect import run

    return run(adapter, against=against, plot=plot, as_json=as_json)


app.command(epilog="Example: loractl plot runs/a runs/b --out curves.png")(plot)
app.command(epilog="Example: loractl report runs/name")(report)


@app.command(epilog="Example: loractl schema > loractl.schema.json")
def schema() -> int:
    """Print the JSON Schema of the config, for editors."""
    from loractl.commands.schema import run

    return run()


@app.command(epilog="Example: loractl doctor")
def doctor(as_json: Json = False) -> int:
    """Report what this machine supports."""
    from loractl.commands.doctor import run

    return run(as_json=as_json)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors that a user cannot fix are raised."""
    if argv and argv[0] in NOT_YET:
        console.errors([f"loractl {argv[0]}: not available in this version"])
        return 2
    command = typer.main.get_command(app)
    name_values_(command)
    if os.environ.get(completion.ASKED):
        return completion.answer_shell(command)
    try:
        if not argv:
            help_of_all = typer.Context(command, info_name="loractl", **command.context_settings)
            console.note(f"{command.get_help(help_of_all)}\n")
            raise ConfigError("no command given; see loractl --help")
        code: int = command.main(list(argv), prog_name="loractl", standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer's exit code for KeyboardInterrupt
            console.note("interrupted")
        return code
    except typer.TyperException as error:
        console.errors([usage.worded(error, _command_of(argv))])
        return error.exit_code
    except LoractlError as error:
        console.errors(error.messages)
        return error.exit_code
    except Stopped as stopped:
        return stopped.exit_code
    except (BrokenPipeError, SystemExit):  # typer turns the first into the second
        # The reader of our output is gone (| head), so there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell_storage(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        console.errors(["out of memory; use a smaller model, a lower dtype or a larger machine"])
        return ConfigError.exit_code


def _command_of(argv: Sequence[str]) -> str:
    """`loractl train` and the like: the command, or subcommand, that these words name."""
    here, path = typer.main.get_command(app), ["loractl"]
    for word in argv:
        if word not in getattr(here, "commands", {}):
            break
        here = here.commands[word]  # type: ignore[attr-defined]
        path.append(word)
    return " ".join(path)


def _tell_storage(error: OSError) -> int:
    """Report that the disk is full or not writable; raise any other error, which is a bug."""
    if not is_of_the_disk(error):
        raise error
    console.errors([f"{error.filename or 'disk'}: {error.strerror}; no partial output was kept"])
    return StorageError.exit_code


def entry() -> None:
    """The `loractl` program. SIGTERM ends it like Ctrl-C, so that no partial output is left."""
    signal.signal(signal.SIGTERM, signals.leave)
    code = main(sys.argv[1:])
    signals.ignore()
    if code in (INTERRUPTED, TERMINATED):
        # Cleanup is done, and shutting torch down can take seconds on a busy machine.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
