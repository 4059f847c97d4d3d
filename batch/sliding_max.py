"""The greatest value among the events of a window, as of any instant: a maximum that falls again cannot be summed.

Each key's openings and queries are read once, in order of time. A heap a window holds what has opened, greatest
first; at a query what has closed is taken off its top. What closes below the top is taken off when it gets there.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from heapq import heappop, heappush

import pyarrow as pa
from pyspark.sql import DataFrame

_OPEN, _QUERY = 0, 1


def sliding_max(openings: DataFrame, queries: DataFrame, keys: tuple[str, ...], parts: tuple[str, ...]) -> DataFrame:
    """For each distinct query (key columns, `t_ms`): the greatest value that is open, as one column a part; else 0.

    `openings` have the key columns, `at` (the first instant at which the event counts), `value` and, for each part,
    the first instant at which it counts no more, under the part's name.
    """
    closings = [f"`{part}`" for part in parts]
    opened = openings.selectExpr(*keys, "at", f"{_OPEN} AS kind", "value", *closings)
    nothing = [f"0L AS `{part}`" for part in parts]
    asked = (
        queries.selectExpr(*keys, "t_ms AS at").distinct().selectExpr("*", f"{_QUERY} AS kind", "0L AS value", *nothing)
    )
    # At one instant openings come before queries: intervals are half-open.
    ordered = opened.unionByName(asked).repartition(*keys).sortWithinPartitions(*keys, "at", "kind")
    columns = [*(f"`{key}` STRING" for key in keys), "t_ms BIGINT", *(f"`{part}` BIGINT" for part in parts)]
    return ordered.mapInArrow(partial(_fold, len(keys)), ", ".join(columns))


def _fold(width: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Answers the queries of one partition; the first `width` columns are the key."""
    held: tuple[str, ...] | None = None
    heaps: list[list[tuple[int, int]]] = []
    for batch in batches:
        names = [*batch.schema.names[:width], "t_ms", *batch.schema.names[width + 3 :]]
        answers: list[tuple[object, ...]] = []
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            key, at, kind, value, closings = row[:width], row[width], row[width + 1], row[width + 2], row[width + 3 :]
            if key != held:
                held, heaps = key, [[] for _ in closings]
            if kind == _OPEN:
                for heap, closing in zip(heaps, closings, strict=True):
                    heappush(heap, (-value, closing))
            else:
                answers.append((*key, at, *(_greatest(heap, at) for heap in heaps)))
        kinds = [pa.string()] * width + [pa.int64()] * (len(names) - width)
        columns = zip(*answers, strict=True) if answers else ([] for _ in names)
        arrays = [pa.array(list(column), type=of) for column, of in zip(columns, kinds, strict=True)]
        yield pa.record_batch(arrays, names=names)


def _greatest(heap: list[tuple[int, int]], at: int) -> int:
    while heap and heap[0][1] <= at:
        heappop(heap)
    return -heap[0][0] if heap else 0
