"""The one place where bundle, catalogue and item features meet: each change publishes another immutable view."""

from collections.abc import Iterable
from threading import Lock

from models.bundle import Bundle
from serving.catalogue import Catalogue
from serving.item_snapshot import SnapshotFeatures
from serving.view import LiveView, ViewBuilder


class Live:
    """Publishes `view`, which requests take without a lock. Its methods may be called from any thread."""

    def __init__(self, snapshot: SnapshotFeatures) -> None:
        self._lock = Lock()
        self._catalogue = Catalogue()
        self._builder = ViewBuilder()
        self._snapshot = snapshot
        self._bundle: Bundle | None = None
        self._notes: dict[str, str] = {}
        self.view: LiveView | None = None
        """None until the first bundle."""

    @property
    def bundle_id(self) -> str | None:
        """The bundle that answers now."""
        return None if self._bundle is None else self._bundle.bundle_id

    @property
    def items_refused(self) -> int:
        """Records of the items topic that were no items."""
        return self._catalogue.refused

    def preview(self, bundle: Bundle) -> LiveView:
        """The view that a bundle would answer from, without its becoming the one in use."""
        with self._lock:
            table = self._catalogue.over(bundle.item_table)
            return ViewBuilder().build(bundle, table, self._snapshot, ())

    def switch(self, bundle: Bundle) -> None:
        """Makes the bundle the one in use. Requests under way keep theirs."""
        with self._lock:
            self._catalogue.rebase(bundle.item_table)
            self._bundle = bundle
            self._publish()

    def apply_items(self, records: Iterable[bytes | None]) -> None:
        """Takes records of the items topic; new items and availability hold from the next request on."""
        with self._lock:
            if self._catalogue.apply(records):
                self._publish()

    def apply_snapshot(self, snapshot: SnapshotFeatures) -> None:
        """Takes newly finalised item features."""
        with self._lock:
            self._snapshot = snapshot
            self._publish()

    def note(self, part: str, why: str | None) -> None:
        """Says that a part of the view may be behind, or with None that it is not."""
        with self._lock:
            if self._notes.get(part) == why:
                return
            if why is None:
                del self._notes[part]
            else:
                self._notes[part] = why
            self._publish()

    def _publish(self) -> None:
        if self._bundle is not None and self._catalogue.table is not None:
            notes = tuple(self._notes.values())
            self.view = self._builder.build(self._bundle, self._catalogue.table, self._snapshot, notes)
