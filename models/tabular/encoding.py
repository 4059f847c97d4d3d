"""Columns as arrays, by constants of the training rows. Shapes: N rows, F numbers, K category columns, P pieces."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtri

from models.refusal import RefusalError
from models.tabular.config import TabularConfig
from models.tabular.table import numbers, texts

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

UNKNOWN, NULL, KNOWN = 0, 1, 2
"""Codes of what training did not know (or hardly), of null, and the first of the known categories."""
KNOTS = 200
"""Quantiles that a number's rank is read from."""
MAX_STANDARD = 5.0
"""Scaled numbers are clipped to this many standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The inputs of a network; arrays of one length."""

    number_NF: npt.NDArray[np.float32]
    """Scaled; null is NaN."""
    code_NK: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.code_NK)

    def take(self, rows: Int64s) -> "Encoded":
        """The given rows."""
        return Encoded(number_NF=self.number_NF[rows], code_NK=self.code_NK[rows])


@dataclass(frozen=True, kw_only=True)
class NumberScale:
    """How one number is scaled: `quantile` by knots (value and standard normal place), `log` by mean and deviation.

    `edges` bound the pieces of the scaled value.
    """

    scale: str
    value: tuple[float, ...] = ()
    place: tuple[float, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0
    edges: tuple[float, ...] = ()

    def __call__(self, raw_N: Float64s) -> Float64s:
        """Scaled values, clipped; NaN stays NaN."""
        if self.scale == "quantile":
            scaled_N = np.interp(raw_N, self.value, self.place) if self.value else np.zeros(len(raw_N))
        else:
            scaled_N = (np.sign(raw_N) * np.log1p(np.abs(raw_N)) - self.mean) / self.deviation
        return np.where(np.isnan(raw_N), np.nan, np.clip(scaled_N, -MAX_STANDARD, MAX_STANDARD))

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "NumberScale":
        """Reads the fields as JSON has them, and lets the column's name be."""
        fields: dict[str, Any] = {name: tuple(got) if isinstance(got, list) else got for name, got in record.items()}
        fields.pop("column", None)
        return NumberScale(**fields)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Scales and vocabularies by column, in the configuration's order."""

    numeric: dict[str, NumberScale]
    categorical: dict[str, tuple[str, ...]]
    """The known categories of each column; code `KNOWN` is the first."""

    @staticmethod
    def fit(table: pa.Table, rows: Int64s, config: TabularConfig) -> "Encoder":
        """Takes the constants from the training rows alone. Raises `RefusalError` as `__call__` does."""
        network, train = config.network, table.take(pa.array(rows))
        return Encoder(
            numeric={
                name: _fit_scale(_finite(train.column(name), name), network.numeric_scale, network.numeric_bins)
                for name in config.numeric
            },
            categorical={
                name: _vocabulary(texts(train.column(name)), network.min_category_rows) for name in config.categorical
            },
        )

    def __call__(self, table: pa.Table) -> Encoded:
        """The rows as arrays. Raises `RefusalError` for a numeric column that holds text or infinity."""
        numeric = [scale(_finite(table.column(name), name)) for name, scale in self.numeric.items()]
        codes = [_codes(texts(table.column(name)), known) for name, known in self.categorical.items()]
        rows = table.num_rows
        return Encoded(
            number_NF=np.stack(numeric, axis=1).astype(np.float32) if numeric else np.empty((rows, 0), np.float32),
            code_NK=np.stack(codes, axis=1) if codes else np.empty((rows, 0), np.int64),
        )

    @property
    def sizes(self) -> list[int]:
        """Number of codes of each category column."""
        return [KNOWN + len(known) for known in self.categorical.values()]

    @property
    def edges(self) -> list[tuple[float, ...]]:
        """Bounds of the pieces of each number."""
        return [scale.edges for scale in self.numeric.values()]

    def to_json(self) -> dict[str, Any]:
        """All constants as JSON values; lists, so that a writer that sorts keys keeps the columns' order."""
        return {
            "numeric": [{"column": name, **asdict(scale)} for name, scale in self.numeric.items()],
            "categorical": [{"column": name, "known": list(known)} for name, known in self.categorical.items()],
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Encoder":
        """Reads what `to_json` gave. Raises `KeyError` or `TypeError` when it is something else."""
        return Encoder(
            numeric={scale["column"]: NumberScale.from_json(scale) for scale in record["numeric"]},
            categorical={column["column"]: tuple(column["known"]) for column in record["categorical"]},
        )


def _finite(column: pa.ChunkedArray, name: str) -> Float64s:
    raw_N = numbers(column, f"numeric feature {name}")
    infinite = int(np.isinf(raw_N).sum())
    if infinite:
        raise RefusalError(f"numeric feature {name}: {infinite} values are infinite; allowed: finite numbers and null.")
    return raw_N


def _fit_scale(raw_N: Float64s, scale: str, pieces: int) -> NumberScale:
    given_N = raw_N[~np.isnan(raw_N)]
    value_V, count_V = np.unique(given_N, return_counts=True)
    if len(value_V) < 2:
        return NumberScale(scale="quantile")
    if scale == "quantile":
        fitted = _ranked(value_V, count_V)
    else:
        log_N = np.sign(given_N) * np.log1p(np.abs(given_N))
        fitted = NumberScale(scale="log", mean=float(log_N.mean()), deviation=float(log_N.std()))
    # A value that many rows share would take most edges for itself; by square roots the rest keep theirs.
    weight_V = np.cumsum(np.sqrt(count_V))
    at = np.searchsorted(weight_V, np.linspace(weight_V[0], weight_V[-1], pieces + 1))
    edges = np.unique(fitted(value_V[np.minimum(at, len(value_V) - 1)])) if pieces else np.empty(0)
    return replace(fitted, edges=tuple(edges.tolist()))


def _ranked(value_V: Float64s, count_V: Int64s) -> NumberScale:
    """Knots at about equal counts; a knot's rank is the middle of its value's run. The normal's scale is its own."""
    middle_V = (np.cumsum(count_V) - count_V / 2) / count_V.sum()
    at = np.unique(np.searchsorted(middle_V, np.linspace(0, 1, KNOTS)).clip(max=len(value_V) - 1))
    return NumberScale(scale="quantile", value=tuple(value_V[at].tolist()), place=tuple(ndtri(middle_V[at]).tolist()))


def _vocabulary(text: pa.ChunkedArray, fewest: int) -> tuple[str, ...]:
    counts = pc.value_counts(text.drop_null())
    found = [(entry["counts"], entry["values"]) for entry in counts.to_pylist()]
    return tuple(value for count, value in sorted(found, key=lambda pair: (-pair[0], pair[1])) if count >= fewest)


def _codes(text: pa.ChunkedArray, known: tuple[str, ...]) -> Int64s:
    place = pc.index_in(text, pa.array(known, pa.string())).combine_chunks()
    code_N = np.asarray(pc.fill_null(place, UNKNOWN - KNOWN).to_numpy(zero_copy_only=False), np.int64) + KNOWN
    return np.where(np.asarray(text.is_null().to_numpy(), bool), NULL, code_N)
