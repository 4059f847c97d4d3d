"""Loops over numbers that numba compiles: when, for what arguments, and where the result is kept (ADR 18).

A compiled function stands in one file with what it calls, and takes as an argument what may change in another: numba's
cache is renewed when the function's own file changes, not when one does that it imports.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.core.types import Array, Type

Function = TypeVar("Function", bound=Callable[..., Any])


def given(dtype: Type, dimensions: int, *, contiguous: bool = False) -> Array:
    """The type of an array argument that is only read: of any strides, unless it has to be `contiguous` (C order)."""
    return Array(dtype, dimensions, "C" if contiguous else "A", readonly=True)


def compiled(*arguments: Type, returns: Type = numba.void, any_order: bool = False) -> Callable[[Function], Function]:
    """Compiles for these types alone, at import rather than in a request, or reads what was compiled before.

    Arrays of other types are refused with `TypeError`. The function runs without Python's lock, and nobody checks that
    an index lies within its array. `any_order` lets sums of floats be taken in the order that is fastest, which is the
    same each time.
    """
    fastmath = {"reassoc", "contract"} if any_order else False

    def decorate(function: Function) -> Function:
        made = numba.njit(returns(*arguments), cache=True, nogil=True, fastmath=fastmath)(function)
        return cast(Function, made)

    return decorate


def inlined(function: Function) -> Function:
    """For what only compiled functions call."""
    return cast(Function, numba.njit(nogil=True)(function))
