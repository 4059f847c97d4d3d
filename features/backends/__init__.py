"""Where the online store keeps its rows: SQLite (embedded default) or Redis, behind one interface."""

from features.backends.base import Backend, BackendError, Document, EntityValues, Offsets, StoreUnavailableError

__all__ = ["Backend", "BackendError", "Document", "EntityValues", "Offsets", "StoreUnavailableError", "open_backend"]


def open_backend(location: str, version: str | None = None) -> Backend:
    """Opens the store at a `redis://`, `rediss://` or `unix://` URL, or else at the path of an SQLite file.

    `version` names the feature specs whose rows are read and written; by default those of this code. Raises
    `StoreUnavailableError` when the store does not answer.
    """
    if location.startswith(("redis://", "rediss://", "unix://")):
        from features.backends.redis import RedisBackend

        return RedisBackend(location, version=version)
    if "://" in location:
        raise BackendError(
            f"online store: got {location!r}; allowed: the path of an SQLite file, or a redis://, rediss:// or "
            "unix:// URL."
        )
    from features.backends.sqlite import SqliteBackend

    return SqliteBackend(location, version=version)
