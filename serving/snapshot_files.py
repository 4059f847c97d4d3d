"""The item snapshot as files that one process writes and any number maps: shared, read-only memory.

`current.json` names the files of one state and is replaced by a rename, so a reader sees one state or the next, never
half of one. The values of a state are a file of their own, which a reader maps; it may be removed while it is mapped.
The ids of an entity are only ever added to, so their file grows and `current.json` says how much of it counts. Nothing
of this needs the writer to be alive.

X rows of an entity: one an id, then that of an id without tiles; F features of the entity.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.specs import Entity, features_of
from serving.item_snapshot import ENTITIES, EntityFeatures, SnapshotFeatures

CURRENT = "current.json"
STALE_S = 5.0
"""After so long without a sign of life the writer counts as gone. It gives one each second."""


@dataclass(frozen=True, kw_only=True)
class KeeperReport:
    """What the keeper says with each sign of life."""

    note: str | None = None
    """Why its values may be behind, as a clause."""
    tiles_refused: int = 0
    """Records of the tile topic that were no tiles."""
    connected: bool | None = None
    """Whether the broker answers for the tile topic; None without Kafka."""


class SnapshotWriter:
    """Publishes states in a directory. There is one writer at a time; a later one goes on beside what is there."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._name = secrets.token_hex(4)
        """Apart from the names of an earlier writer, whose files may be mapped."""
        self._published = 0
        self._ids: dict[Entity, _IdFile] = {}
        self._state: dict[str, Any] = {}
        self._beats = 0

    def publish(self, features: SnapshotFeatures) -> None:
        """Makes these the values that readers find, at float32, which is what the ranker reads."""
        self._published += 1
        values = f"values-{self._name}-{self._published}"
        with (self._directory / values).open("wb") as file:
            for entity in ENTITIES:
                file.write(features.by_entity[entity].values_XF.astype(np.float32).tobytes())
        ids = {str(entity): self._written_ids(entity, features.by_entity[entity]) for entity in ENTITIES}
        self._state = {"instant_ms": features.instant_ms, "values": values, "ids": ids}

    def beat(self, report: KeeperReport) -> None:
        """The sign of life: with it readers find what was published last."""
        self._beats += 1
        beat = [self._name, self._beats]
        new = self._directory / f"{CURRENT}.new"
        new.write_text(json.dumps({**self._state, "beat": beat, "report": asdict(report)}))
        new.replace(self._directory / CURRENT)
        self._remove_unnamed()

    def _written_ids(self, entity: Entity, features: EntityFeatures) -> dict[str, Any]:
        known = self._ids.get(entity)
        if known is None or known.ids is not features.ids:
            path = self._directory / f"ids-{self._name}-{self._published}-{entity}"
            known = self._ids[entity] = _IdFile(path=path, ids=features.ids)
        known.extend(len(features))
        return {"file": known.path.name, "bytes": known.bytes, "rows": len(features)}

    def _remove_unnamed(self) -> None:
        named = {CURRENT, self._state.get("values"), *(ids["file"] for ids in self._state.get("ids", {}).values())}
        for path in self._directory.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)


@dataclass(kw_only=True)
class _IdFile:
    path: Path
    ids: list[str]
    rows: int = 0
    bytes: int = 0

    def extend(self, rows: int) -> None:
        new = "".join(f"{json.dumps(name)}\n" for name in islice(self.ids, self.rows, rows)).encode()
        with self.path.open("ab") as file:
            file.write(new)
        self.rows, self.bytes = rows, self.bytes + len(new)


class SnapshotReader:
    """Finds what a writer has published. Used by one thread; what it returns may be shared."""

    def __init__(self, directory: Path, monotonic_s: Callable[[], float]) -> None:
        self._directory = directory
        self._monotonic_s = monotonic_s
        self._beat: object = None
        self._beat_s = monotonic_s()
        self._values = ""
        self._ids: dict[Entity, _Ids] = {}
        self.report = KeeperReport()
        """The writer's last."""
        self.found = False
        """Whether values have been read."""

    @property
    def silent_s(self) -> float | None:
        """Since when the writer has given no sign of life, once that is longer than `STALE_S`."""
        silent_s = self._monotonic_s() - self._beat_s
        return silent_s if silent_s > STALE_S else None

    def look(self) -> SnapshotFeatures | None:
        """The values if they are others than at the last look. What goes missing meanwhile is found at the next."""
        try:
            state = json.loads((self._directory / CURRENT).read_text())
            if state["beat"] == self._beat:
                return None
            self._beat, self._beat_s = state["beat"], self._monotonic_s()
            self.report = KeeperReport(**state["report"])
            if state.get("values", self._values) == self._values:
                return None
            features = self._read(state)
        except FileNotFoundError:
            return None
        self._values, self.found = state["values"], True
        return features

    def _read(self, state: dict[str, Any]) -> SnapshotFeatures:
        values: npt.NDArray[np.float32] = np.memmap(self._directory / state["values"], np.float32, "r").view(np.ndarray)
        by_entity, first = {}, 0
        for entity in ENTITIES:
            ids, width = state["ids"][str(entity)], len(features_of(entity))
            last = first + (ids["rows"] + 1) * width
            known = self._ids.get(entity)
            if known is None or known.path.name != ids["file"]:
                known = self._ids[entity] = _Ids(path=self._directory / ids["file"])
            known.read(ids["bytes"])
            by_entity[entity] = EntityFeatures(
                ids=known.ids, index=known.index, values_XF=values[first:last].reshape(-1, width)
            )
            first = last
        return SnapshotFeatures(instant_ms=state["instant_ms"], by_entity=by_entity)


class _Ids:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self._bytes = 0

    def read(self, size: int) -> None:
        if size == self._bytes:
            return
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            new = json.loads(b"[" + b",".join(file.read(size - self._bytes).splitlines()) + b"]")
        self.index.update((name, row) for row, name in enumerate(new, start=len(self.ids)))
        self.ids += new
        self._bytes = size
