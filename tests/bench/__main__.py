"""`python -m tests.bench [NAME]`: runs one benchmark or all, prints tables and writes `var/bench/NAME.json`.

Each `bench_NAME.py` beside this file is one benchmark: its `run(console)` returns the rows of figures.
"""

import argparse
import importlib
import signal
import sys
from pathlib import Path

from rich.console import Console

from tests.bench.report import BenchError, keep, table

NAMES = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))


def run_bench(name: str | None, console: Console, **options: float) -> None:
    """Runs one benchmark, with its options, or all. Raises `BenchError` for an unknown name, or when one fails."""
    if name is not None and name not in NAMES:
        raise BenchError(f"unknown benchmark {name!r}; allowed: {', '.join(NAMES)}.")
    for each in NAMES if name is None else (name,):
        rows = importlib.import_module(f"tests.bench.bench_{each}").run(console, **options)
        keep(each, rows)
        console.print(table(each, rows))


def main() -> int:
    """0 when all ran, 1 with one sentence when one did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="one benchmark; default: all")
    parser.add_argument("--outage-s", type=float, help="of `serving`: how long the outages take, 0 for none (300)")
    got = parser.parse_args()
    # What it has started ends with it, also when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = {} if got.outage_s is None or got.name != "serving" else {"outage_s": got.outage_s}
    try:
        run_bench(got.name, Console(highlight=False), **options)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
