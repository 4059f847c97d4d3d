"""Class data archives (JEP 350): the classes that a broker and a Spark driver load, stored as the JVM keeps them.

`python -m infra.class_archives NAME` (part of `make setup`) runs each of them once, has it write down what it loaded,
and puts that where `infra.jvm.shared_classes` says. Whoever starts with the archive neither reads, parses nor verifies
those classes.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from features.names import Topics
from infra.jvm import QUICK_COMPILER, shared_classes
from infra.kafka import BrokerConfig, broker_answers, create_topics, format_broker
from infra.processes import free_ports, wait_until
from infra.settings import LOOPBACK, jars_dir, load_settings
from infra.spark import submit_command

LIMIT_S = 300.0


class ArchiveError(RuntimeError):
    """One sentence: what did not run, and its last words."""


def archive_kafka(noting: Callable[[str], str], work: Path) -> None:
    """A broker that starts, makes topics and ends. `noting` has a flag of a JVM write instead of read an archive."""
    port, controller_port = free_ports(LOOPBACK, 2)
    broker = BrokerConfig(
        data_dir=work / "broker", jars_dir=jars_dir("kafka"), port=port, controller_port=controller_port
    )
    format_broker(broker)
    log = work / "broker.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*map(noting, broker.command)], stdout=out, stderr=out)
    try:
        wait_until(lambda: process.poll() is not None or broker_answers(broker.bootstrap_servers), LIMIT_S)
        if not broker_answers(broker.bootstrap_servers):
            raise ArchiveError(f"the broker does not answer; {_last_words(log)}")
        create_topics(broker.bootstrap_servers, Topics(version="archive"))
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait()


def archive_spark(noting: Callable[[str], str], work: Path) -> None:
    """A driver that does on a few rows what the jobs do."""
    command = submit_command(load_settings(spark_jvm_args=QUICK_COMPILER), "class_archive_job", str(work))
    log = work / "spark.log"
    with log.open("wb") as out:
        done = subprocess.run([*map(noting, command)], stdout=out, stderr=out, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise ArchiveError(f"Spark ended with status {done.returncode}; {_last_words(log)}")


ARCHIVED: dict[str, Callable[[Callable[[str], str], Path], None]] = {"kafka": archive_kafka, "spark": archive_spark}


def make(name: str) -> bool:
    """Makes the archive, or puts a new one in the place of an old one; False where this Java makes none.

    Raises `ArchiveError` when what is to be archived does not run.
    """
    share = shared_classes(name)
    target = Path(share.partition("=")[2])
    with tempfile.TemporaryDirectory(prefix="millrace-classes-", dir=target.parent) as work:
        made = Path(work) / target.name
        ARCHIVED[name](lambda word: word.replace(share, f"-XX:ArchiveClassesAtExit={made}"), Path(work))
        if not made.is_file():
            return False
        made.replace(target)
    return True


def _last_words(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split()[-40:]) or "it said nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infra.class_archives", description=__doc__)
    parser.add_argument("name", choices=sorted(ARCHIVED))
    name = parser.parse_args(arguments).name
    # As the set-up stops it: what it has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if not make(name):
            sys.stdout.write(f"this Java makes no class archive of {name}; it starts more slowly without.\n")
    except (ArchiveError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"class archive of {name}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
