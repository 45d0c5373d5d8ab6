"""Measure loractl on this machine; what is found goes into results.json and RESULTS.md.

`python scripts/bench SUBJECT --help` lists the options of a subject.
"""

import argparse
import importlib
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
MEASURES = {
    "speed": "speed and memory of training, against what others use",
    "memory": "peak memory of training: predicted and measured",
    "offload": "training with the layers read from disk, against layers in memory",
    "ops": "each op of loractl/ops against the plain formula",
    "hub": "what many adapters on one base cost",
    "safety": "what share of a run syncing, hashing and verifying take",
    "tokenise": "how fast rows are tokenised by one process and by two, here and by TRL",
    "forgetting": "what full fine-tuning and LoRA forget at equal loss",
}
MAKES = {
    "results": "write RESULTS.md from results.json",
    "chart": "draw the chart of speed from results.json",
}


def main(argv: list[str]) -> int:
    from bench import report, results

    parser = argparse.ArgumentParser(prog="python scripts/bench", description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, help in {**MEASURES, **MAKES}.items():
        options = subjects.add_parser(name, help=help, description=help)
        options.add_argument(
            "--results", type=Path, default=report.RESULTS, help="JSON file (%(default)s)"
        )
        if name in argv[:1]:  # the others need not be imported
            importlib.import_module(f"bench.{name}").add_options(options)
    asked = parser.parse_args(argv)
    subject = importlib.import_module(f"bench.{asked.subject}")
    try:
        return int(subject.measure(asked) if asked.subject in MEASURES else subject.make(asked))
    finally:
        if asked.subject in MEASURES and asked.results.is_file():
            results.write(asked.results)


if __name__ == "__main__":
    # This checkout, whatever is installed; and the package, in place of its files as modules.
    sys.path[:1] = [str(SCRIPTS.parent), str(SCRIPTS)]
    sys.exit(main(sys.argv[1:]))
