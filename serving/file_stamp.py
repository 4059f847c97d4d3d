"""Whether a file that people or promotions replace has changed since it was last read."""

from pathlib import Path

Stamp = tuple[int, int, int] | None
"""Modification time in nanoseconds, inode and size; None for a file that is not there."""


def stamp_of(file: Path | None) -> Stamp:
    """The file's stamp now; None where there is none, or it cannot be looked at."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)
