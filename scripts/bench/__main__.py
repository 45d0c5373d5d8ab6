#!/usr/bin/env python3
"""Measure loractl on this machine, and write what was found into README.md.

scripts/bench memory [--points N] [--dry]    peak memory of training: predicted, measured
scripts/bench speed --model DIR --data FILE  speed and memory of training, against others
scripts/bench ops [--only NAME ...]          each op of loractl/ops against its naive twin
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    import bench_ops
    import bench_speed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    subjects = parser.add_subparsers(dest="subject", required=True)
    memory = subjects.add_parser("memory", help="peak memory of training: predicted, measured")
    memory.add_argument("--points", type=int, help="only the first N of the grid")
    memory.add_argument("--dry", action="store_true", help="print the table, leave README.md alone")
    bench_speed.add_options(subjects.add_parser("speed", help="speed of training, against others"))
    bench_ops.add_options(subjects.add_parser("ops", help="each op against its naive twin"))
    asked = parser.parse_args()
    if asked.subject == "memory":
        from bench_memory import measure

        return measure(points=asked.points, dry=asked.dry)
    return {"speed": bench_speed, "ops": bench_ops}[asked.subject].measure(asked)


if __name__ == "__main__":
    sys.exit(main())
