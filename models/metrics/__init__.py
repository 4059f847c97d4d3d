"""Metrics: small functions of arrays. Shapes: N examples, B rankings, K ranks, best first."""

from models.metrics.auc import auc, gauc, group_aucs
from models.metrics.bootstrap import Interval, bootstrap
from models.metrics.calibration_error import expected_calibration_error
from models.metrics.log_loss import log_loss, log_losses
from models.metrics.top_k import hit_rate, ndcg, recall, reciprocal_rank

__all__ = [
    "Interval",
    "auc",
    "bootstrap",
    "expected_calibration_error",
    "gauc",
    "group_aucs",
    "hit_rate",
    "log_loss",
    "log_losses",
    "ndcg",
    "recall",
    "reciprocal_rank",
]
