"""Where the online store keeps its rows: SQLite (embedded default) or Redis, behind one interface."""

from features.backends.base import (
    Asked,
    Backend,
    BackendError,
    Document,
    EntityValues,
    Offsets,
    StoreUnavailableError,
)

__all__ = [
    "Asked",
    "Backend",
    "BackendError",
    "Document",
    "EntityValues",
    "Offsets",
    "StoreUnavailableError",
    "open_backend",
]


def open_backend(location: str, version: str | None = None) -> Backend:
    """Opens the store at a `redis://`, `rediss://` or `unix://` URL, or else at the path of an SQLite file.

    `version` pins the version of the features whose rows are read and written. Without it the backend follows the
    version that the store names for this code's specs (`features.backends.following`). Raises
    `StoreUnavailableError` when the store does not answer.
    """
    if version is not None:
        return _open_pinned(location, version)
    from features.backends.following import FollowingBackend

    return FollowingBackend(lambda named: _open_pinned(location, named))


def _open_pinned(location: str, version: str) -> Backend:
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
