"""Metrics: small functions of arrays. Shapes: N examples, B rankings, K ranks, best first."""

from models.metrics.auc import auc, gauc
from models.metrics.bootstrap import Interval, bootstrap
from models.metrics.calibration_error import expected_calibration_error
from models.metrics.log_loss import log_loss
from models.metrics.top_k import hit_rate, ndcg, recall, reciprocal_rank

__all__ = [
    "Interval",
    "auc",
    "bootstrap",
    "expected_calibration_error",
    "gauc",
    "hit_rate",
    "log_loss",
    "ndcg",
    "recall",
    "reciprocal_rank",
]
