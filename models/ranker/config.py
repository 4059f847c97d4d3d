"""The ranker's hyper-parameters."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.ranker.experts import Mixture
from models.ranker_inputs import HEADS


class RankerConfig(BaseModel):
    """One training run's settings; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_dim: int = Field(default=8, ge=1)
    """Width of the item embedding; the history's items share it."""
    category_dim: int = Field(default=6, ge=1)
    creator_dim: int = Field(default=4, ge=1)
    language_dim: int = Field(default=3, ge=1)
    context_dim: int = Field(default=3, ge=1)
    """Width of the device and of the hour embedding."""
    hidden_dim: int = Field(default=96, ge=1)
    """Width of the shared first layer."""
    mixture: Mixture = "mmoe"
    """How the heads share: one pool of experts, or shared and own ones in levels (`models.ranker.experts`)."""
    experts: int = Field(default=4, ge=1)
    """That all heads share; of `ple`, at each level."""
    own_experts: int = Field(default=1, ge=1)
    """Of each head at each level; only `ple` has them."""
    levels: int = Field(default=2, ge=1, le=8)
    """Extraction levels of `ple`."""
    expert_dim: int = Field(default=48, ge=1)
    tower_dim: int = Field(default=24, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the first layer's outputs."""
    oov_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of ids shown as out of vocabulary in training, so that the model can do without them."""
    new_item_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of examples whose item is shown as one from after the training: out of vocabulary and unknown to ALS."""
    min_item_examples: int = Field(default=20, ge=0)
    """Items with fewer training examples are scored as out of vocabulary."""
    batch_size: int = Field(default=1_024, ge=1)
    epochs: int = Field(default=6, ge=1)
    """At most; see `patience`."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation loss after which training ends."""
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    head_weights: dict[str, float] = Field(
        default={"click": 1.0, "completion": 0.3, "like": 0.5, "share": 0.3, "hide": 0.5, "watch_fraction": 0.3}
    )
    """Weight of each head's loss."""
    single_task_share: float = Field(default=0.3, ge=0)
    """Example updates that the single-task nets of the report get together, as a share of the ranker's own: 0 leaves
    them out, 6 trains each in full, less makes them a lower bound (`models.ranker.single_task`)."""
    refuse_leaks: bool = True
    """Whether a windowed feature that knows the future ends the run (`models.leakage`); else it is only logged."""
    threads: int = Field(default=1, ge=1)
    """Torch's; on a machine that is busy with other work, more of them wait for each other (measured: 30 times)."""

    @model_validator(mode="after")
    def _names_every_head(self) -> Self:
        if set(self.head_weights) != set(HEADS):
            raise ValueError(f"head_weights names {sorted(self.head_weights)}; allowed: exactly {sorted(HEADS)}")
        return self
