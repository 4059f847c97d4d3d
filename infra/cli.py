"""The `millrace` command. Each subcommand imports what it needs when it runs, so that all of them start quickly."""

import signal
import sys
from collections import deque
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from infra.settings import SettingsError, load_settings
from infra.stack import Stack, StackError

LOG_LINES = 40
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Millrace: a real-time recommender on one machine.")
console = Console(highlight=False, soft_wrap=True)


class CommandError(Exception):
    """One sentence for the user: what was got, what is allowed, what to do."""


class Dataset(StrEnum):
    """What the demo replays."""

    WORLD = "world"
    MOVIELENS = "movielens"


class Described(StrEnum):
    """What `features` describes."""

    USER = "user"
    ITEM = "item"


def _say(line: str) -> None:
    console.print(line, markup=False)


# The stack.


@app.command()
def up(
    programs: Annotated[
        list[str] | None, typer.Argument(help="Which programs; with what they need. Default: all.")
    ] = None,
) -> None:
    """Start the local stack and wait until every part is ready."""
    settings = load_settings()
    Stack(settings).start(_say, programs or None)
    _say(f"the stack runs; Airflow: {settings.airflow_url}, Flink: {settings.flink_url}, gRPC: {settings.grpc_address}")


@app.command()
def down() -> None:
    """Stop the stack and every process that it started."""
    stack = Stack(load_settings())
    if not stack.supervisor.processes():
        _say("the stack does not run")
        return
    stack.stop(_say)


@app.command()
def status() -> None:
    """Show what runs, where, and how much memory it takes; exit 1 unless every program runs."""
    stack = Stack(load_settings())
    programs = stack.status()
    if not programs:
        raise CommandError(f"the stack in {stack.settings.var_dir} does not run; start it with millrace up.")
    table = Table("program", "state", "pid", "up", "memory", "ports", "log", box=None)
    for program in programs:
        up_for = f"{program.uptime_s:.0f} s" if program.pid else ""
        memory = f"{program.memory_mb:.0f} MB" if program.pid else ""
        ports = " ".join(map(str, program.ports))
        table.add_row(program.name, program.state, str(program.pid or ""), up_for, memory, ports, program.log)
    console.print(table)
    _say(f"memory of all processes: {stack.memory_mb():.0f} MB")
    if not all(program.state == "RUNNING" for program in programs):
        raise typer.Exit(1)


@app.command()
def logs(
    program: Annotated[str | None, typer.Argument(help="One program; default: all.")] = None,
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the last lines of each.")] = LOG_LINES,
) -> None:
    """Show the newest log lines."""
    logs_dir = load_settings().logs_dir
    found = {path.stem: path for path in sorted(logs_dir.glob("*.log"))}
    if program is not None and program not in found:
        allowed = ", ".join(found) or "none, since nothing has been started"
        raise CommandError(f"no log of {program!r} in {logs_dir}; there are: {allowed}.")
    for name, path in found.items():
        if program in (None, name):
            _say(f"==> {path}")
            with path.open(errors="replace") as text:
                _say("".join(deque(text, maxlen=lines)).rstrip("\n"))


@app.command()
def doctor() -> None:
    """Check Java, Maven, Python, environments, jars, memory, disk and ports, and say what to do."""
    from infra.doctor import Verdict, examine

    missing = 0
    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.MISSING: "red"}
    for finding in examine(load_settings()):
        missing += finding.verdict is Verdict.MISSING
        colour = colours[finding.verdict]
        advice = f" → {finding.advice}" if finding.advice else ""
        console.print(f"[{colour}]{finding.verdict:8}[/{colour}] {finding.what:20} {finding.found}{advice}")
    if missing:
        raise CommandError(f"{missing} of the checks above failed; do what stands behind each arrow.")
    _say("all that Millrace needs is here")


# Data and slates.


@app.command()
def demo(
    data: Annotated[Dataset, typer.Option(help="A synthetic world, or MovieLens 100K.")] = Dataset.WORLD,
) -> None:
    """Run the whole chain from an empty broker to a report in var/demo, and stop everything again."""
    from infra.demo.run import run_demo

    raise typer.Exit(run_demo(data=data.value))


def main() -> None:
    """Entry point: 0 when all went well, 1 with one sentence on an error, 2 on a wrong flag, 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        if said := error.format_message().rstrip("."):
            _fail(f"{said}; see millrace --help.", 2)
        sys.exit(2)  # no command at all: the help has been shown
    except (CommandError, SettingsError, StackError) as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped.", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"millrace: {sentence}\n")
    sys.exit(code)
