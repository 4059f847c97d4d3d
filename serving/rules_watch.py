"""Following the rules file: a new one applies within a second, a bad one is refused and the old one goes on."""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from serving.file_stamp import stamp_of
from serving.rules import NO_RULES, Rules, RulesError, read_rules

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5


class RulesWatcher:
    """Publishes `rules`, which requests take without a lock.

    A refused file is told once and tried again when it changes. A file that is removed is refused, too: rules end by
    an empty file, not by an accident.
    """

    def __init__(self, file: Path | None, on_switch: Callable[[str], None] = lambda _: None) -> None:
        """Reads the file; None means no rules. `on_switch` is told the version. Raises `RulesError` for a bad one."""
        self._file = file
        self._on_switch = on_switch
        self._stop = Event()
        self._thread = Thread(target=self._run, name="rules", daemon=True)
        self.refused = 0
        """Changes of the file that were refused since the start."""
        self._looked_at = stamp_of(self._file)
        self.rules: Rules = NO_RULES if file is None else read_rules(file)
        on_switch(self.rules.version)

    def start(self) -> None:
        """Starts the thread."""
        if self._file is not None:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Reads the file if it has changed since the last look."""
        stamp = stamp_of(self._file)
        if self._file is None or stamp == self._looked_at:
            return
        self._looked_at = stamp
        try:
            rules = read_rules(self._file)
        except RulesError as error:
            self.refused += 1
            _log.error("rules refused, version %s goes on: %s", self.rules.version, error)
            return
        if rules.version != self.rules.version:
            self.rules = rules
            _log.info("rules of version %s apply from now on", rules.version)
            self._on_switch(rules.version)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the watcher must outlive whatever one file brings
                _log.exception("looking at the rules failed")
