"""Which bundles are loaded: the champion, the one before it, those of experiment arms and the challenger.

They are loaded, verified and warmed up in a thread beside the ones that answer, then take over between two requests.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import numpy as np

from models.bundle import CHAMPION, MANIFEST, Bundle, BundleError, loaded
from models.champions import Champions, read_champions
from models.history import user_history
from models.refusal import RefusalError
from models.sources.base import RetrievalRequest
from serving import priority
from serving.experiments import NO_EXPERIMENTS, Experiments
from serving.experiments_file import read_experiments
from serving.file_stamp import Stamp, stamp_of
from serving.live import Live
from serving.rerank import RerankConfig
from serving.score import score
from serving.users import unknown_user
from serving.view import LiveView

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
WARM_UP_CANDIDATES = 300
WARM_UP_RUNS = 3
HAND_OVER_S = 0.0005
"""A request lets go of Python's lock some dozens of times, and each time waits so long for it while a bundle is loaded:
a quarter of a second in all with Python's own 5 ms, by which requests disturb one another less at all other times."""
_NOTE = "champion"


class BundleWatcher:
    """Follows `champion.json` and the experiments file in a thread; what cannot be served is refused, the old goes on.

    - A champion that cannot be served is tried again when `champion.json` is written anew. Meanwhile the one before
      answers; at the start, the newest earlier champion that can be served. Answers say so.
    - An experiments file is refused as a whole, also when a bundle that it names cannot be served. At the start there
      is no older file to go on with, so it holds then: the arms of such bundles fall back to the champion, and their
      bundles are tried again when their manifests change.
    - The champion before this one stays in memory, so that a roll-back loads nothing; every other bundle that nothing
      names any more is let go.
    """

    def __init__(
        self,
        *,
        live: Live,
        bundles_dir: Path,
        threads: int,
        on_switch: Callable[[str, float], None],
        experiments_file: Path | None = None,
        clock_ms: Callable[[], int] = lambda: 0,
        rerank: RerankConfig | None = None,
    ) -> None:
        """`on_switch` is told the bundle that answers from now on and how many seconds it took to get there.

        `clock_ms` tells which experiments run; `rerank` is what arms change.
        """
        self._live = live
        self._bundles_dir = bundles_dir
        self._threads = threads
        self._on_switch = on_switch
        self._experiments_file = experiments_file
        self._clock_ms = clock_ms
        self._rerank = rerank
        self._stop = Event()
        self._thread = Thread(target=self._run, name="bundles", daemon=True)
        self._champion_stamp: Stamp = None
        self._file_stamp: Stamp = None
        self._before: str | None = None
        """The champion before the one that answers."""
        self._experiments: Experiments | None = None
        """None before the first look."""
        self._missing: dict[str, Stamp] = {}
        """Bundles of the experiments that are not loaded, with their manifests' stamps when they were tried."""
        self._loaded: dict[str, Bundle] = {}
        self._published = NO_EXPERIMENTS
        self._beside: Set[str] = frozenset()
        self.refused = 0
        """Promotions that were refused since the start."""
        self.experiments_refused = 0
        """Experiments files, and bundles of the first one, that were refused since the start."""
        self.on_earlier_champion = False
        """Whether another bundle answers than `champion.json` names."""

    @property
    def loaded(self) -> frozenset[str]:
        """The bundles in memory."""
        return frozenset(self._loaded)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, waiting for a bundle that is being loaded."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Takes over what has changed on disk since the last look, and starts and ends experiments that are due."""
        if self._experiments is None:  # so that users are in their arms from the first answer on
            self._look_at_experiments()
        self._look_at_champion()
        self._look_at_experiments()
        self._let_go()

    def _look_at_champion(self) -> None:
        stamp = stamp_of(self._bundles_dir / CHAMPION)
        if stamp is None or stamp == self._champion_stamp:
            return
        self._champion_stamp = stamp
        try:
            known = read_champions(self._bundles_dir)
            self._promote(known)
        except BundleError as error:
            self.refused += 1
            _log.error("bundle refused, %s goes on: %s", self._live.bundle_id or "no bundle", error)

    def _promote(self, known: Champions) -> None:
        if known.bundle_id is None:
            return
        try:
            self._switch(known.bundle_id)
        except BundleError:
            if self._live.bundle_id is None:
                self._fall_back(known)
            if self._live.bundle_id is not None:
                self._say_earlier(f"the champion {known.bundle_id} cannot be served: {self._live.bundle_id} answers")
            raise
        self._say_earlier(None)

    def _fall_back(self, known: Champions) -> None:
        """Switches to the newest earlier champion that can be served, if there is one."""
        for bundle_id in _earlier(known):
            try:
                self._switch(bundle_id)
            except BundleError as error:
                _log.error("the earlier champion cannot be served either: %s", error)
            else:
                return

    def _say_earlier(self, why: str | None) -> None:
        self.on_earlier_champion = why is not None
        self._live.note(_NOTE, why)

    def _switch(self, bundle_id: str) -> None:
        now = self._live.bundle_id
        if bundle_id == now:
            return
        started_s = perf_counter()
        self._live.switch(self._load(bundle_id))
        self._before = now
        _log.info("bundle %s answers from now on", bundle_id)
        self._on_switch(bundle_id, perf_counter() - started_s)

    def _look_at_experiments(self) -> None:
        file = self._experiments_file
        if file is None:
            return
        stamp = stamp_of(file)
        now = self._experiments
        if now is None or stamp != self._file_stamp:
            self._file_stamp = stamp
            try:
                now = self._taken(NO_EXPERIMENTS if stamp is None else read_experiments(file, self._rerank))
            except RefusalError as error:
                self.experiments_refused += 1
                _log.error("experiments refused, the old ones go on: %s", error)
        elif any(self._manifest_stamp(bundle_id) != tried for bundle_id, tried in self._missing.items()):
            self._load_what_can_be(now)
        self._experiments = (now or NO_EXPERIMENTS).at(self._clock_ms())
        self._publish(self._experiments)

    def _taken(self, found: Experiments) -> Experiments:
        """The experiments with all that they name loaded. Raises `BundleError` when it cannot be, but at the start."""
        if self._experiments is None:
            self._load_what_can_be(found)
        else:
            for bundle_id in sorted(found.bundle_ids):
                self._load(bundle_id)
            self._missing = {}
        _log.info("experiments in use: %s", ", ".join(each.name for each in found.declared) or "none")
        return found

    def _load_what_can_be(self, experiments: Experiments) -> None:
        missing: dict[str, Stamp] = {}
        for bundle_id in sorted(experiments.bundle_ids):
            stamp = self._manifest_stamp(bundle_id)
            try:
                self._load(bundle_id)
            except BundleError as error:
                missing[bundle_id] = stamp
                self.experiments_refused += 1
                _log.error("a bundle of the experiments is not served: %s", error)
        self._missing = missing

    def _publish(self, now: Experiments) -> None:
        beside = {bundle_id: self._loaded[bundle_id] for bundle_id in now.bundle_ids if bundle_id in self._loaded}
        if now is not self._published or beside.keys() != self._beside:
            self._published, self._beside = now, beside.keys()
            self._live.run(now, beside.values())

    def _load(self, bundle_id: str) -> Bundle:
        """The bundle, verified and warm. Raises `BundleError`."""
        if bundle_id not in self._loaded:
            bundle = loaded(self._bundles_dir, bundle_id, self._threads)
            warm_up(self._live.preview(bundle))
            self._loaded[bundle_id] = bundle
        return self._loaded[bundle_id]

    def _let_go(self) -> None:
        named = {self._live.bundle_id, self._before, *(self._experiments or NO_EXPERIMENTS).bundle_ids}
        for bundle_id in [bundle_id for bundle_id in self._loaded if bundle_id not in named]:
            del self._loaded[bundle_id]
            _log.info("bundle %s is let go", bundle_id)

    def _manifest_stamp(self, bundle_id: str) -> Stamp:
        return stamp_of(self._bundles_dir / bundle_id / MANIFEST)

    def _run(self) -> None:
        if self._threads == 1:  # a ranker's further threads are started by this one and would give way to requests, too
            priority.lower(priority.LOW)
        while not self._stop.is_set():
            try:
                with _handing_over_soon():
                    self.look()
            except Exception:  # noqa: BLE001 - the watcher must outlive whatever one promotion brings
                _log.exception("looking for bundles and experiments failed")
            self._stop.wait(LOOK_EVERY_S)


@contextmanager
def _handing_over_soon() -> Iterator[None]:
    """Within it a thread keeps Python's lock for `HAND_OVER_S` at most while another wants it."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(HAND_OVER_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def _earlier(known: Champions) -> Iterator[str]:
    """Earlier champions, the newest first: those that the champion stands upon, then those that were rolled back."""
    order = [*reversed(known.before), *(switch.bundle_id for switch in reversed(known.history))]
    return (bundle_id for bundle_id in dict.fromkeys(order) if bundle_id != known.bundle_id)


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
