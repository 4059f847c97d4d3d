"""Watching for promotions: the champion is loaded, verified and warmed up beside the one that answers."""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import numpy as np

from models.bundle import CHAMPION, Bundle, BundleError, champion_id
from models.history import user_history
from models.sources.base import RetrievalRequest
from serving.live import Live
from serving.score import score
from serving.users import unknown_user
from serving.view import LiveView

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
WARM_UP_CANDIDATES = 300
WARM_UP_RUNS = 3


class BundleWatcher:
    """Follows `champion.json` in a thread. A bundle that cannot be served is refused, and the old one goes on.

    A refused bundle is tried again when `champion.json` is written anew.
    """

    def __init__(self, *, live: Live, bundles_dir: Path, threads: int, on_switch: Callable[[str, float], None]) -> None:
        """`on_switch` is told the bundle that answers from now on and how many seconds it took to get there."""
        self._live = live
        self._bundles_dir = bundles_dir
        self._threads = threads
        self._on_switch = on_switch
        self._stop = Event()
        self._thread = Thread(target=self._run, name="bundles", daemon=True)
        self._looked_at: tuple[int, int] | None = None
        self.refused = 0
        """Promotions that were refused since the start."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, waiting for a bundle that is being loaded."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Switches to the champion if `champion.json` has changed since the last look and names another bundle."""
        stamp = _stamp(self._bundles_dir / CHAMPION)
        if stamp is None or stamp == self._looked_at:
            return
        self._looked_at = stamp
        try:
            self._promote(champion_id(self._bundles_dir))
        except BundleError as error:
            self.refused += 1
            _log.error("bundle refused, %s goes on: %s", self._live.bundle_id or "no bundle", error)

    def _promote(self, bundle_id: str | None) -> None:
        if bundle_id is None or bundle_id == self._live.bundle_id:
            return
        started_s = perf_counter()
        bundle = Bundle.load(self._bundles_dir / bundle_id, self._threads)
        if bundle.bundle_id != bundle_id:
            raise BundleError(f"bundle {bundle.path}: its manifest says {bundle.bundle_id}; copy the bundle again.")
        warm_up(self._live.preview(bundle))
        self._live.switch(bundle)
        _log.info("bundle %s answers from now on", bundle_id)
        self._on_switch(bundle_id, perf_counter() - started_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the watcher must outlive whatever one promotion brings
                _log.exception("looking for a promotion failed")
            self._stop.wait(LOOK_EVERY_S)


def warm_up(view: LiveView) -> None:
    """Runs every source and the ranker as a request would. Raises `BundleError` for a bundle that cannot answer."""
    table = view.item_table
    state = unknown_user("", view.snapshot_instant_ms)
    history_L = np.arange(min(10, len(table)), dtype=np.int32)
    request = RetrievalRequest(
        instant_ms=state.instant_ms,
        item_table=table,
        history_index_L=history_L,
        history_weight_L=np.ones(len(history_L), np.float32),
        history_age_ms_L=np.zeros(len(history_L), np.int64),
        excluded_I=np.zeros(len(table), np.bool_),
        rng=np.random.default_rng(0),
        trending_score_I=view.trending_score_I,
        impressions_I=view.impressions_I,
    )
    item_index_C = np.arange(min(WARM_UP_CANDIDATES, len(table)), dtype=np.int32)
    try:
        for _ in range(WARM_UP_RUNS):
            for source in view.bundle.sources.values():
                source.candidates(request, WARM_UP_CANDIDATES)
            scored = score(view, state, user_history((), table), item_index_C, "")
    except Exception as error:  # whatever a part raises, the bundle is refused in one sentence
        raise BundleError(f"bundle {view.bundle.path}: cannot answer: {type(error).__name__}: {error}.") from error
    if scored.sunk:
        raise BundleError(f"bundle {view.bundle.path}: {scored.sunk} of {len(item_index_C)} scores are not finite.")


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
