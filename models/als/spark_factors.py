"""The source of the factors that `batch.als` made with Spark MLlib."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from models.als import AlsError
from models.lake import index_in
from models.sources import hnsw
from models.sources.als import AlsSource


@dataclass(frozen=True, kw_only=True)
class SparkFactors:
    """The source, and what it was made of."""

    source: AlsSource
    config: dict[str, Any]
    """Hyper-parameters, as `batch.als.AlsRun` has them."""
    newest_event_ms: int
    """The newest event that the factors know."""


def read_factors(directory: Path, item_ids: tuple[str, ...]) -> SparkFactors:
    """The source in the order of these items. Items that Spark had no interests of have zeros.

    Raises `AlsError` when the directory is not one that `batch.als` wrote.
    """
    try:
        report = json.loads((directory / "als.json").read_text())
        config, newest_event_ms = report["config"], report["newest_event_ms"]
        rows = ds.dataset(directory / "item_factors", format="parquet").to_table(columns=["item_id", "factors"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise AlsError(f"ALS factors {directory} cannot be read: {error}; run batch/als.py again.") from error
    place_N = index_in(rows.column("item_id"), item_ids)
    factors_ND = np.array(rows.column("factors").to_pylist(), np.float32).reshape(-1, config["embedding_dim"])
    factors_ID = np.zeros((len(item_ids), config["embedding_dim"]), np.float32)
    factors_ID[place_N[place_N >= 0]] = factors_ND[place_N >= 0]
    source = AlsSource(
        item_factors_ID=factors_ID,
        alpha=config["alpha"],
        regularization=config["regularization"],
        frequency_exponent=1.0,
        hnsw_N=hnsw.build_if_large(factors_ID),
    )
    return SparkFactors(source=source, config=config, newest_event_ms=newest_event_ms)
