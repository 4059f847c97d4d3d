"""The door that erased users do not pass: a request of theirs is an anonymous one, and nothing is logged of them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event, Thread

from features.backends import Backend
from features.erasure import digest_of
from serving.query import Query

_log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""How long a request may still be answered by name after the erasure was asked for."""


class Door:
    """Knows the store's erasures, read again every `REFRESH_S`. While the store is away the last ones known hold."""

    def __init__(self, open_store: Callable[[], Backend]) -> None:
        self._open_store = open_store
        self._store: Backend | None = None
        self._erased: Mapping[str, int] = {}
        self._down = False
        self._stop = Event()
        self._thread = Thread(target=self._run, name="door", daemon=True)

    def start(self) -> None:
        """Begins to follow the store."""
        self._thread.start()

    def refuses(self, user_id: str) -> bool:
        """Whether the user is erased."""
        return bool(self._erased) and digest_of(user_id) in self._erased

    def admitted(self, query: Query) -> Query:
        """The query, without its user where that one is erased."""
        return replace(query, user_id="") if self.refuses(query.user_id) else query

    def refresh(self) -> None:
        """Reads the erasures once. A store that fails is opened anew the next time."""
        try:
            if self._store is None:
                self._store = self._open_store()
            self._erased = self._store.erasures()
            self._down = False
        except Exception as error:  # noqa: BLE001 - whatever the backend raises, requests go on
            self._close()
            if not self._down:
                _log.warning("erasures cannot be read, the last ones known hold: %s", error)
            self._down = True

    def stop(self) -> None:
        """Ends the thread and lets go of the store."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(REFRESH_S)

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
