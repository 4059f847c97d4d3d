"""Candidate models on one's own tables of interactions: `millrace evaluate candidates`.

`table` reads them, `recommenders` are trained on them, `protocol` asks and measures, `tuning` chooses hyper-parameters
on a validation split of the training table. Shapes: U users, I items, Q questions (test users), C candidates.
"""

from enum import StrEnum


class Kind(StrEnum):
    """The models that `--model` names."""

    ALS = "als"
    ITEM2ITEM = "item2item"
    POPULAR = "popular"
