"""What a training run refuses to learn from: the future.

1. A split whose parts overlap in time, so that one user's later examples would teach about their earlier ones.
2. A history that holds what had not happened when the impression was made.
3. A windowed feature that tells the click too well, or that has counted the very event that it is to predict.

Shapes: N examples, F features, T heads.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.events import FUTURE_SKEW_MS, EventType
from features.specs import WINDOWED_FEATURES, Aggregate
from models.metrics import auc
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS, USER_FEATURES, RankerInputs
from models.refusal import RefusalError

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

MAX_FEATURE_AUC = 0.95
"""No honest window comes near it: one feature that orders clicks better than this (or, turned round, worse than
its complement) has seen them. Whole rankers are at .7 to .8 on the data that this was set by."""
MIN_POSITIVES = 50
"""Fewer tell nothing."""
MIN_EMPTY_SHARE = 0.2
"""Share of the negatives whose count must be 0 before positives without any 0 are suspicious."""
MAX_SKEWED_SHARE = 0.01
"""Of history entries, at or after their impression: devices' clocks may run ahead, and by few."""
CHECKED_EXAMPLES = 50_000
_LABEL_OF = {EventType.CLICK: "click", EventType.LIKE: "like", EventType.SHARE: "share", EventType.HIDE: "hide"}


class LeakageError(RefusalError):
    """Examples that know the future."""


def check_split(time_ms_N: Int64s, rows: Mapping[str, Int64s]) -> None:
    """Raises `LeakageError` unless every train instant is before every validation one, and those before test."""
    for earlier, later in (("train", "validation"), ("validation", "test")):
        last_ms, first_ms = time_ms_N[rows[earlier]].max(), time_ms_N[rows[later]].min()
        if last_ms >= first_ms:
            raise LeakageError(
                f"the split leaks: {earlier} reaches to {last_ms}, {later} begins at {first_ms}; "
                f"allowed: {earlier} ends before {later} begins. Split by time (models.splits)."
            )


def checked_histories(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Passes the batches on, counting history entries at or after their example's `t_ms`.

    Raises `LeakageError` at one that no clock explains (`FUTURE_SKEW_MS`), and at the end when they are too many.
    """
    entries, skewed = 0, 0
    for batch in batches:
        times = batch.column("history_event_times_ms")
        row_N = pc.list_parent_indices(times).to_numpy(zero_copy_only=False)
        ahead_ms_N = (
            times.flatten().to_numpy(zero_copy_only=False) - batch.column("t_ms").to_numpy(zero_copy_only=False)[row_N]
        )
        if len(ahead_ms_N) and ahead_ms_N.max() > FUTURE_SKEW_MS:
            raise LeakageError(
                f"history_event_times_ms leaks: an entry is {ahead_ms_N.max():.0f} ms after its impression; allowed: "
                f"before it, or {FUTURE_SKEW_MS} ms after by a wrong clock. Rerun batch/training_examples.py."
            )
        entries, skewed = entries + len(ahead_ms_N), skewed + int((ahead_ms_N >= 0).sum())
        yield batch
    if skewed > MAX_SKEWED_SHARE * entries:
        raise LeakageError(
            f"history_event_times_ms leaks: {skewed} of {entries} entries are not before their impression; "
            f"allowed: {MAX_SKEWED_SHARE:.0%}. Rerun batch/training_examples.py."
        )


def check_windows(inputs: RankerInputs, label_NT: Float32s, rows: Int64s) -> None:
    """Raises `LeakageError` that names the first windowed feature that knows what it is to predict.

    Looks at evenly spaced training `rows`, at most `CHECKED_EXAMPLES`, one user row an example.
    """
    rows = rows[:: max(1, len(rows) // CHECKED_EXAMPLES)]
    label_NT = label_NT[rows]
    values_NF = np.concatenate([inputs.user_UF[rows], inputs.candidate_CF[rows]], axis=1)
    by_name = dict(zip((*USER_FEATURES, *CANDIDATE_FEATURES), values_NF.T, strict=True))
    clicked_N = label_NT[:, HEADS.index("click")]
    for feature in WINDOWED_FEATURES:
        value_N = by_name[feature.name]
        _check_auc(feature.name, value_N, clicked_N)
        if feature.aggregate is Aggregate.COUNT:
            for head in (_LABEL_OF[kind] for kind in sorted(feature.events.event_types & set(_LABEL_OF))):
                _check_own_event(feature.name, value_N, head, label_NT[:, HEADS.index(head)])


def _check_auc(name: str, value_N: npt.NDArray[Any], clicked_N: Float32s) -> None:
    defined_N = ~np.isnan(clicked_N)
    positive_N = clicked_N[defined_N] > 0
    if min(positive_N.sum(), (~positive_N).sum()) < MIN_POSITIVES:
        return
    got = auc(positive_N, value_N[defined_N])
    if max(got, 1 - got) > MAX_FEATURE_AUC:
        raise LeakageError(
            f"feature {name} leaks: alone it orders clicks with an AUC of {got:.3f}; "
            f"allowed: {1 - MAX_FEATURE_AUC:.2f} to {MAX_FEATURE_AUC}. Look for later events in its window."
        )


def _check_own_event(name: str, value_N: npt.NDArray[Any], head: str, label_N: Float32s) -> None:
    """A count that holds the event itself is never 0 where the event followed.

    An honest one is 0 at the first event of each key, so it is 0 at some positives wherever it often is at all.
    """
    positive_N, negative_N = label_N > 0, label_N == 0
    empty_share = float((value_N[negative_N] == 0).mean()) if negative_N.any() else 0.0
    if positive_N.sum() < MIN_POSITIVES or empty_share < MIN_EMPTY_SHARE or (value_N[positive_N] == 0).any():
        return
    raise LeakageError(
        f"feature {name} leaks: it is 0 at {empty_share:.0%} of the examples without {head} and at none of the "
        f"{positive_N.sum()} with it, so it has counted the {head} itself; count events before the impression only."
    )
