"""The door that erased users do not pass: who they are, as store and lake remember it."""

from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from features.backends import Backend, open_backend
from features.names import LakeTables
from features.repo import store_location

TABLES = LakeTables()


def refused_by_lake(lake: Path) -> dict[str, int]:
    """Since when each erased user, by digest, is refused, as the lake has it."""
    table = str(lake / TABLES.erased_users)
    if not DeltaTable.is_deltatable(table):
        return {}
    rows = pa.table(DeltaTable(table).to_pyarrow_table()).to_pylist()
    return {row["digest"]: row["at_ms"] for row in rows}


def refuse_in_lake(lake: Path, digests: dict[str, int]) -> None:
    """Adds those that the lake does not know."""
    known = refused_by_lake(lake)
    rows = [{"digest": digest, "at_ms": at_ms} for digest, at_ms in digests.items() if digest not in known]
    if rows:
        write_deltalake(str(lake / TABLES.erased_users), pa.Table.from_pylist(rows), mode="append")


def refused(lake: Path, feature_repo: Path | None) -> dict[str, int]:
    """What either of them knows. Raises `StoreUnavailableError` when the store does not answer: nobody passes then."""
    known = refused_by_lake(lake)
    if feature_repo is None:
        return known
    with open_store(feature_repo) as store:
        return known | store.erasures()


def open_store(feature_repo: Path) -> Backend:
    """The online store of the repo. Raises `FeatureRepoError` and `StoreUnavailableError`."""
    return open_backend(store_location(feature_repo))
