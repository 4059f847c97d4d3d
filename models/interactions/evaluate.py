"""One evaluation from tables to a report."""

import logging
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.configuration import read_configuration
from models.interactions import Kind
from models.interactions.protocol import build_test, measure, summarise
from models.interactions.recommenders import CONFIGS, Config, train
from models.interactions.table import UNKNOWN, read_pairs, read_training
from models.interactions.tuning import tune
from models.refusal import RefusalError

log = logging.getLogger(__name__)


class Evaluation(BaseModel):
    """What `millrace evaluate candidates` is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Path
    test: Path
    negatives: Path | None = None
    """Candidates besides the test items, `user_id, item_id`; None ranks the whole catalogue."""
    model: Kind = Kind.ALS
    config: Path | None = None
    """JSON file of the model's settings (`models.als.AlsConfig`, `models.interactions.recommenders`)."""
    tune: int = Field(default=0, ge=0)
    """Trials of the search for hyper-parameters; 0 takes the configuration as it is."""
    tune_limit_s: float = Field(default=1_800.0, gt=0)
    """No trial begins after so many seconds of search."""
    ranks: tuple[int, ...] = Field(default=(10, 20, 50), min_length=1)
    """The k of the metrics; the first is the one that tuning looks at."""
    seed: int = 0


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """Trains on all of the training table and measures on the test table; the report has the metrics at top level.

    Raises `RefusalError` (`TableError`, `AlsError`) with one sentence for input that cannot be used.
    """
    if min(asked.ranks) < 1:
        raise RefusalError(f"ranks: got {', '.join(map(str, asked.ranks))}; allowed: whole numbers from 1.")
    config = read_config(asked.model, asked.config)
    training = read_training(asked.train)
    tested = read_pairs(asked.test, training)
    negatives = None if asked.negatives is None else read_pairs(asked.negatives, tested)
    test = build_test(training, tested, negatives)
    matrix = training.matrix()
    log.info("%d rows, %d users, %d items; %d test users", len(training), *matrix.shape, len(test))
    began_s = time.monotonic()
    sampled, trials = negatives is not None, []
    if asked.tune:
        tuned = tune(
            training,
            config,
            trials=asked.tune,
            sampled=sampled,
            rank=asked.ranks[0],
            limit_s=asked.tune_limit_s,
            seed=asked.seed,
        )
        config, trials = tuned.config, tuned.trials
    tuned_s = time.monotonic()
    recommend = train(matrix, config, asked.seed)
    trained_s = time.monotonic()
    metrics = measure(recommend, matrix, test, asked.ranks, asked.seed)
    return {
        **summarise(metrics, asked.seed),
        "model": str(asked.model),
        "config": config.model_dump(mode="json"),
        "protocol": "sampled negatives" if sampled else "full catalogue without the user's training items",
        "seed": asked.seed,
        "users": len(training.user_ids),
        "items": len(training.item_ids),
        "rows": len(training),
        "test_users": len(test),
        "test_rows": len(tested),
        "unknown_test_users": int((test.user_Q == UNKNOWN).sum()),
        "unknown_test_items": int((tested.item_N == UNKNOWN).sum()),
        "trials": trials,
        "tune_seconds": tuned_s - began_s,
        "train_seconds": trained_s - tuned_s,
    }


def read_config(kind: Kind, file: Path | None) -> Config:
    """The model's configuration from a file, or its default. Raises `RefusalError` that names what is wrong."""
    if file is None:
        return CONFIGS[kind]()
    return read_configuration(CONFIGS[kind], file, f"{kind} configuration")
