"""What a demo run can be asked for."""

from pydantic import BaseModel, ConfigDict, Field


class DemoOptions(BaseModel):
    """Sizes and seed of one run; the defaults are the demo that the README shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str = Field(default="world", pattern="^(world|movielens)$")
    """The synthetic world, or MovieLens 100K."""
    seed: int = Field(default=7, ge=0)
    """Seed of the world, of training and of the intervals."""
    users: int = Field(default=5_000, ge=50)
    """Users of the world's history."""
    items: int = Field(default=2_000, ge=100)
    """Items of the world's history."""
    live_users: int = Field(default=250, ge=10)
    """Users who ask for slates in the live phase."""
    rounds: int = Field(default=5, ge=1)
    """Slates that each live user asks for, in each arm."""
    retrainings: int = Field(default=0, ge=0)
    """How often the models are trained again on what the users did, each time followed by another live phase."""
    probes: int = Field(default=100, ge=1)
    """Events whose way into a slate is timed."""
    held_out: int = Field(default=2_000, ge=1)
    """MovieLens: at most so many held-out interactions are replayed, the earliest first."""
