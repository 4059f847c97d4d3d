"""The `millrace` command. Each subcommand imports what it needs when it runs, so that all of them start quickly."""

import signal
import sys
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from features.clock import wall_clock_ms
from infra.airflow import USER, passwords_path
from infra.commands import (
    CommandError,
    callers,
    evaluate,
    experiments,
    lineage,
    models,
    requests,
    rules,
    say,
    train,
    weights,
)
from infra.processes import port_is_free
from infra.reprocess import Source
from infra.settings import LOOPBACK, SettingsError, load_settings
from infra.stack import Stack, StackError
from infra.supervisor import SupervisorError
from models.refusal import RefusalError

if TYPE_CHECKING:
    from serving.client import RankingClient, Slate

LOG_LINES = 40
INTERRUPTED = 130
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Millrace: a real-time recommender on one machine.")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(models.app, name="models")
app.add_typer(weights.app, name="weights")
app.add_typer(rules.app, name="rules")
app.add_typer(callers.app, name="callers")
app.add_typer(experiments.app, name="experiments")
app.command()(requests.why)
app.command("replay-request")(requests.replay_request)
app.command()(lineage.lineage)
console = Console(highlight=False, soft_wrap=True)


class Dataset(StrEnum):
    """What the demo replays."""

    WORLD = "world"
    MOVIELENS = "movielens"


class Described(StrEnum):
    """What `features` describes."""

    USER = "user"
    ITEM = "item"


# The stack.


@app.command()
def up(
    programs: Annotated[
        list[str] | None, typer.Argument(help="Which programs; with what they need. Default: all.")
    ] = None,
) -> None:
    """Start the local stack and wait until every part is ready."""
    settings = load_settings()
    stack = Stack(settings)
    stack.start(say, programs or None)
    flink_url = stack.streams()[0].settings(settings).flink_url
    airflow = f"{settings.airflow_url} (user {USER}, password in {passwords_path(settings)})"
    say(f"the stack runs; gRPC: {settings.grpc_address}, Flink: {flink_url}, Airflow: {airflow}")


@app.command()
def down() -> None:
    """Stop the stack and every process that it started."""
    stack = Stack(load_settings())
    if not stack.supervisor.processes():
        say("the stack does not run")
        return
    stack.stop(say)


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
    say(f"memory of all processes: {stack.memory_mb():.0f} MB")
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
            say(f"==> {path}")
            with path.open(errors="replace") as text:
                say("".join(deque(text, maxlen=lines)).rstrip("\n"))


@app.command()
def reprocess(
    source: Annotated[
        Source, typer.Option(help="lake: also sends what the lake knows and Kafka holds no more.")
    ] = Source.KAFKA,
    keep_old: Annotated[bool, typer.Option(help="Leave the old version's rows, checkpoints and topics.")] = False,
    retire: Annotated[bool, typer.Option(help="Rebuild nothing; only remove the versions that are not used.")] = False,
) -> None:
    """Rebuild the features beside the running ones, then switch over; run it again if it is interrupted."""
    from confluent_kafka import KafkaException

    from features.backends import StoreUnavailableError
    from infra.reprocess import ReprocessError
    from infra.reprocess.run import rebuild, retire_unused

    stack = Stack(load_settings())
    try:
        if retire:
            retire_unused(stack, say)
        else:
            rebuild(stack, say, source=source, keep_old=keep_old)
    except (ReprocessError, StoreUnavailableError, SupervisorError) as error:
        raise CommandError(str(error)) from None
    except KafkaException as error:
        raise CommandError(f"Kafka says: {error}; the running version goes on, so run it again.") from None


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
    say("all that Millrace needs is here")


# Data and slates.


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Events as JSON Lines or Parquet.")],
    rate: Annotated[float | None, typer.Option(help="Events a second; default: as fast as it goes.")] = None,
    shift: Annotated[bool, typer.Option(help="Move all times by one constant, so that the last event is now.")] = False,
    keep_invalid: Annotated[bool, typer.Option(help="Send rows that break the contract too, as they are.")] = False,
) -> None:
    """Send a file of events to Kafka. The whole file is checked before the first one is sent."""
    from infra.programs import topics
    from streaming.producer import ProduceError
    from streaming.replay import ReplayError, replay_file

    settings = load_settings()
    _need_port(settings.kafka_port, "the broker")
    now_ms = wall_clock_ms()
    try:
        report = replay_file(
            file,
            bootstrap_servers=settings.bootstrap_servers,
            topic=topics().events,
            rate_per_s=rate,
            shift_to_ms=now_ms if shift else None,
            now_ms=now_ms,
            keep_invalid=keep_invalid,
        )
    except (ReplayError, ProduceError) as error:
        raise CommandError(str(error)) from None
    pace = report.records / max(report.seconds, 0.001)
    say(f"sent {report.events} events and {report.invalid} invalid records in {report.seconds:.1f} s ({pace:.0f}/s)")


@app.command()
def features(
    kind: Annotated[Described, typer.Argument(help="What to describe.")],
    key: Annotated[str, typer.Argument(metavar="ID", help="user_id or item_id.")],
) -> None:
    """Show what the online store says now of a user or an item."""
    from features.backends import StoreUnavailableError, open_backend
    from features.repo import CONFIG_FILE, FeatureRepoError, store_location
    from infra.views import UnknownKeyError, item_view, user_view

    try:
        settings = load_settings()
        if not (settings.feature_repo_dir / CONFIG_FILE).exists():
            raise CommandError(f"no feature repo in {settings.feature_repo_dir} yet; start the stack with millrace up.")
        location = store_location(settings.feature_repo_dir)
        if "://" not in location and not Path(location).exists():
            raise CommandError(f"no online store at {location} yet; start the stack with millrace up.")
        view = user_view if kind is Described.USER else item_view
        with open_backend(location) as backend:
            console.print(view(backend, key, wall_clock_ms()))
    except (FeatureRepoError, StoreUnavailableError, UnknownKeyError) as error:
        raise CommandError(str(error)) from None


@app.command()
def ledger() -> None:
    """Show what became of every record of the events topic; exit 1 unless each has exactly one outcome."""
    from confluent_kafka import KafkaException

    from features.backends import StoreUnavailableError, open_backend
    from features.repo import FeatureRepoError, store_location
    from infra.accounts import read_accounts
    from infra.programs import topics
    from infra.views import ledger_view

    settings = load_settings()
    _need_port(settings.kafka_port, "the broker")
    try:
        with open_backend(store_location(settings.feature_repo_dir)) as backend:
            accounts = read_accounts(backend, settings.bootstrap_servers, topics().events)
    except (FeatureRepoError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from None
    except KafkaException as error:
        raise CommandError(f"Kafka says: {error}; see millrace logs kafka.") from None
    console.print(ledger_view(accounts))
    if not all(account.balances for account in accounts):
        raise CommandError("not every record has exactly one outcome yet; if this stays so, records were lost.")


@app.command("erase")
def erase_user(
    user: Annotated[str, typer.Argument(metavar="USER", help="user_id; it is never taken again, by anybody.")],
) -> None:
    """Erase a user from store, lake and training runs, and say what a scan finds and what ages out when."""
    from infra.commands.erase import erase, report_file

    settings = load_settings()
    report = erase(settings, user)
    for each in report["ages_out"]:
        say(f"gone after {each['until']}: {each['what']}")
    say(f"a scan of store and files found nothing of them; report: {report_file(settings, report)}")


@app.command()
def recommend(
    user: Annotated[str, typer.Argument(metavar="USER", help="user_id; an unknown one gets what is popular.")],
    count: Annotated[int, typer.Option(min=1, max=500, help="How many items.")] = 10,
    arm: Annotated[str, typer.Option(help="millrace, popular, random or EXPERIMENT/ARM; default: the user's.")] = "",
) -> None:
    """Ask the ranking service for a slate and show it as a table."""
    _show_slate(lambda client: client.recommend(user, count=count, arm=arm, explain=True))


@app.command()
def similar(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="item_id; for an unknown one comes what is popular.")],
    user: Annotated[str, typer.Option(help="Leaves out what this user has seen or hidden.")] = "",
    count: Annotated[int, typer.Option(min=1, max=500, help="How many items.")] = 10,
) -> None:
    """Ask the ranking service for items like an item and show them as a table."""
    _show_slate(lambda client: client.similar(item, count, user_id=user))


def _show_slate(ask: "Callable[[RankingClient], Slate]") -> None:
    from infra.ranking import ranking_client
    from infra.views import slate_view
    from serving.client import RankingError
    from serving.tls import TlsError

    settings = load_settings()
    _need_port(settings.grpc_port, "the ranking service")
    try:
        with ranking_client(settings) as client:
            slate = ask(client)
    except TlsError as error:
        raise CommandError(str(error)) from None
    except RankingError as error:
        raise CommandError(f"the ranking service refused: {error}.") from None
    console.print(slate_view(slate))


@app.command()
def demo(
    data: Annotated[Dataset, typer.Option(help="A synthetic world, or MovieLens 100K.")] = Dataset.WORLD,
    seed: Annotated[int | None, typer.Option(help="Of the world, of training and of the intervals.")] = None,
    users: Annotated[int | None, typer.Option(help="Users of the world's history.")] = None,
    items: Annotated[int | None, typer.Option(help="Items of the world's history.")] = None,
    live_users: Annotated[int | None, typer.Option(help="Users who ask for slates in the live phase.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Slates that each live user asks for, in each arm.")] = None,
    retrainings: Annotated[int | None, typer.Option(help="Train again on the live events, so often.")] = None,
) -> None:
    """Run the whole chain from an empty broker to a report in var/demo, and stop everything again."""
    from pydantic import ValidationError

    from infra.airflow_client import AirflowError
    from infra.data_wheels import DataError
    from infra.demo import DemoError
    from infra.demo.options import DemoOptions
    from infra.demo.run import run_demo
    from serving.client import RankingError
    from streaming.movielens import MovieLensError
    from streaming.producer import ProduceError

    given = {"seed": seed, "users": users, "items": items, "live_users": live_users, "rounds": rounds}
    given |= {"retrainings": retrainings}
    try:
        chosen = {name: value for name, value in given.items() if value is not None}
        options = DemoOptions.model_validate({"data": data.value, **chosen})
        raise typer.Exit(run_demo(options, console))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise CommandError(f"{flag}: got {first['input']!r}; {first['msg'].lower()}.") from None
    except (AirflowError, DataError, DemoError, MovieLensError, ProduceError, RankingError) as error:
        raise CommandError(str(error)) from None


def _need_port(port: int, what: str) -> None:
    if port_is_free(LOOPBACK, port):
        raise CommandError(f"nothing listens on port {port}, where {what} should be; start the stack with millrace up.")


def main() -> None:
    """Entry point: 0 when all went well, 1 with one sentence on an error, 2 on a wrong flag, 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        if said := error.format_message().rstrip("."):
            _fail(f"{said}; see millrace --help.", 2)
        sys.exit(2)  # no command at all: the help has been shown
    except (CommandError, RefusalError, SettingsError, StackError) as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # what typer returns for Ctrl-C
        _fail("stopped.", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"millrace: {sentence}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
