"""The scribe of a worker: the process that writes what the worker has served, so that no request waits for it.

`serving.processes` starts it with the service's own flags: `python -m serving.scribe --parent PID --number N FLAGS`.
The worker of the same number connects to its socket, sends drafts (`serving.slate_log`) and hears how many are dealt
with. A scribe outlives its worker and takes the next one's drafts; SIGTERM ends it once it has written what it has.
"""

import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from time import perf_counter

from prometheus_client import CollectorRegistry

from serving import priority
from serving.logs import log_as_json
from serving.options import ServerConfig, parse_arguments
from serving.processes import end_with_parent, stop_on_signal
from serving.request_log import RequestLogWriter
from serving.slate_metrics import SlateMetrics
from serving.slate_writer import SlateWriter

_log = logging.getLogger(__name__)

POLL_S = 0.05
"""How long it waits for a draft before it hears from Kafka and looks whether it is to end."""
SAY_EVERY_S = 0.02
"""How often at most the worker hears what was dealt with, while drafts come."""


class Scribe:
    """Takes drafts at a socket, one worker after the other."""

    def __init__(self, address: Path, writer: SlateWriter) -> None:
        self._address = address
        self._writer = writer

    def run(self, stop: Event) -> None:
        """Writes until `stop`, and then what has been sent to it."""
        self._address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._address))
            listening.listen()
            listening.settimeout(POLL_S)
            while True:
                try:
                    accepted, _ = listening.accept()
                except TimeoutError:
                    if stop.is_set():
                        break
                    self._writer.poll()
                    self._writer.keep()
                    continue
                accepted.setblocking(True)
                with Connection(accepted.detach()) as worker:
                    self._serve(worker, stop)
        self._writer.close()

    def _serve(self, worker: Connection, stop: Event) -> None:
        """Writes what a worker sends, until it goes, or until there is nothing more to read and `stop`. Tells it how
        many drafts have been dealt with since the last word, and whether Kafka answers.
        """
        written, said_s, said_connected = 0, 0.0, True
        while True:
            try:
                waiting = worker.poll(0 if written else POLL_S)
                if waiting:
                    self._writer.write(worker.recv())
                    written += 1
                else:
                    self._writer.keep()
                self._writer.poll()
                now_s, connected = perf_counter(), self._writer.connected
                if (written and (not waiting or now_s - said_s >= SAY_EVERY_S)) or connected != said_connected:
                    worker.send((written, connected))
                    written, said_s, said_connected = 0, now_s, connected
            except (EOFError, OSError):  # the worker has gone
                return
            if stop.is_set() and not waiting:
                return


def slate_writer(config: ServerConfig, clock_ms: Callable[[], int]) -> SlateWriter:
    """Writes where the configuration says."""
    requests = None if config.request_log is None else RequestLogWriter(config.request_log, clock_ms)
    metrics = SlateMetrics(CollectorRegistry())
    return SlateWriter(config.bootstrap_servers, config.topics.slates, metrics, requests)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes until SIGTERM or SIGINT; returns the process's exit status."""
    config = parse_arguments(arguments)
    end_with_parent(config.parent)
    priority.lower(priority.BELOW_WORKERS)
    log_as_json(config.log_level)
    stop = stop_on_signal()
    writer = slate_writer(config, clock_ms=lambda: time.time_ns() // 1_000_000)
    Scribe(config.scribe_address, writer).run(stop)
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
