"""The one place where bundles, catalogue and item features meet: each change publishes another immutable view."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np

from models.bundle import Bundle
from models.item_table import ItemTable
from models.sources.base import RetrievalRequest
from serving.catalogue import Catalogue
from serving.experiments import NO_EXPERIMENTS, Experiments
from serving.item_snapshot import SnapshotFeatures
from serving.view import LiveView, ViewBuilder


@dataclass(kw_only=True)
class _Loaded:
    """A bundle in use with the catalogue over its items."""

    bundle: Bundle
    table: ItemTable
    builder: ViewBuilder = field(default_factory=ViewBuilder)

    def view(self, snapshot: SnapshotFeatures, notes: tuple[str, ...]) -> LiveView:
        return self.builder.build(self.bundle, self.table, snapshot, notes)


class Live:
    """Publishes `view`, which requests take without a lock. Its methods may be called from any thread."""

    def __init__(self, snapshot: SnapshotFeatures) -> None:
        self._lock = Lock()
        self._catalogue = Catalogue()
        self._snapshot = snapshot
        self._champion: _Loaded | None = None
        self._before: _Loaded | None = None
        """The champion before, with its catalogue kept current, so that going back costs little."""
        self._beside: dict[str, _Loaded] = {}
        self._experiments = NO_EXPERIMENTS
        self._notes: dict[str, str] = {}
        self.view: LiveView | None = None
        """None until the first bundle."""

    @property
    def bundle_id(self) -> str | None:
        """The bundle that answers outside experiments now."""
        return None if self._champion is None else self._champion.bundle.bundle_id

    @property
    def items_refused(self) -> int:
        """Records of the items topic that were no items."""
        return self._catalogue.refused

    def preview(self, bundle: Bundle) -> LiveView:
        """The view that a bundle would answer from, without its becoming the one in use."""
        with self._lock:
            return self._of(bundle).view(self._snapshot, ())

    def switch(self, bundle: Bundle) -> None:
        """Makes the bundle the champion. Requests under way keep theirs."""
        with self._lock:
            loaded = self._of(bundle)
            if loaded is not self._champion:
                self._before, self._champion = self._champion, loaded
            self._publish()

    def run(self, experiments: Experiments, beside: Iterable[Bundle]) -> None:
        """Runs these experiments with these bundles beside the champion, in the place of those before."""
        with self._lock:
            self._experiments = experiments
            self._beside = {bundle.bundle_id: self._of(bundle) for bundle in beside}
            self._publish()

    def apply_items(self, records: Iterable[bytes | None]) -> None:
        """Takes records of the items topic; new items and availability hold from the next request on."""
        with self._lock:
            if changed := self._catalogue.apply(records):
                for loaded in self._all():
                    loaded.table = loaded.table.with_items(changed)
                self._publish()

    def apply_snapshot(self, snapshot: SnapshotFeatures) -> None:
        """Takes newly finalised item features."""
        with self._lock:
            self._snapshot = snapshot
            self._publish()

    def note(self, part: str, why: str | None) -> None:
        """Says that a part of the view is not as it should be, or with None that it is."""
        with self._lock:
            if self._notes.get(part) == why:
                return
            if why is None:
                del self._notes[part]
            else:
                self._notes[part] = why
            self._publish()

    def _of(self, bundle: Bundle) -> _Loaded:
        known = (loaded for loaded in self._all() if loaded.bundle is bundle)
        return next(known, None) or _Loaded(bundle=bundle, table=self._catalogue.over(bundle.item_table))

    def _all(self) -> list[_Loaded]:
        """Each once, though the champion may be an arm's bundle, too."""
        held = (self._champion, self._before, *self._beside.values())
        return list({id(loaded): loaded for loaded in held if loaded is not None}.values())

    def _publish(self) -> None:
        if self._champion is not None:
            notes, champion_id = tuple(self._notes.values()), self._champion.bundle.bundle_id
            beside = {
                bundle_id: loaded.view(self._snapshot, notes)
                for bundle_id, loaded in self._beside.items()
                if bundle_id != champion_id
            }
            champion = self._champion.view(self._snapshot, notes)
            for view in (champion, *beside.values()):
                _work_out_what_is_shared(view)
            self.view = replace(champion, experiments=self._experiments, beside=beside)


def _work_out_what_is_shared(view: LiveView) -> None:
    """Has the sources make what they keep for all requests of the view, such as the order of what is trending, so that
    the first of those requests need not wait for it.
    """
    none = np.empty(0, np.int64)
    nobody = RetrievalRequest(
        instant_ms=view.snapshot_instant_ms,
        item_table=view.item_table,
        history_index_L=none.astype(np.int32),
        history_weight_L=none.astype(np.float32),
        history_age_ms_L=none,
        excluded_I=np.zeros(len(view.item_table), np.bool_),
        rng=np.random.default_rng(0),
        trending_score_I=view.trending_score_I,
        impressions_I=view.impressions_I,
    )
    for source in view.bundle.sources.values():
        with suppress(Exception):  # a source that fails is told of, and done without, where it is asked in earnest
            source.candidates(nobody, 1)
