"""What a policy would have got, from what another policy logged: small functions of arrays, and one table contract.

Shapes: N logged rows, G groups, A actions, P positions, F features, M pairs of a row and an action that the target
policy may take there.
"""

from models.off_policy.estimators import Estimate, Terms, doubly_robust, estimate, ips, snips
from models.off_policy.log import Choices, PolicyLog
from models.off_policy.report import PolicyReport, evaluate_policy
from models.off_policy.table import read_policy_log
from models.off_policy.weights import clipped, effective_sample_size, importance_weights, unsupported_share

__all__ = [
    "Choices",
    "Estimate",
    "PolicyLog",
    "PolicyReport",
    "Terms",
    "clipped",
    "doubly_robust",
    "effective_sample_size",
    "estimate",
    "evaluate_policy",
    "importance_weights",
    "ips",
    "read_policy_log",
    "snips",
    "unsupported_share",
]
