"""What many requests share: the last value made of the same objects, kept instead of made anew."""

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """One value and the objects that it was made of. Safe for use by several threads, which may make it twice."""

    def __init__(self) -> None:
        self._last: tuple[tuple[object, ...], Value] | None = None

    def of(self, parts: tuple[object, ...], make: Callable[[], Value]) -> Value:
        """The value kept, if it was made of these very parts (equal numbers count as the same); else a new one."""
        last = self._last
        if last is not None and len(last[0]) == len(parts) and all(map(_same, last[0], parts)):
            return last[1]
        value = make()
        self._last = (parts, value)
        return value


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, int) and one == other)
