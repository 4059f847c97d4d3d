"""Experiments as requests read them: who is in which arm. `serving.experiments_file` reads them from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from serving.arms import ARMS, MILLRACE, Arm
from serving.traffic import UNASSIGNED, bucket_of


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Users who are in no experiment: the same ones as long as the salt is the same, and when the share grows."""

    salt: str
    buckets: int

    def holds(self, user_id: str) -> bool:
        """Whether the user is held out."""
        return bucket_of(self.salt, user_id) < self.buckets


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A bundle that scores in the shadow, for a share of the champion's answers."""

    bundle_id: str
    buckets: int

    def takes(self, request_id: str) -> bool:
        """Whether the challenger scores this request, too."""
        return bucket_of("shadow", request_id) < self.buckets


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms and their users. The first arm is the control."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    arm_of_bucket: tuple[int, ...] = field(repr=False)
    """`serving.traffic.arm_of_bucket`."""
    start_ms: int | None = None
    end_ms: int | None = None

    def runs(self, instant_ms: int) -> bool:
        """Whether users are assigned at the instant: in [start, end), an absent end being open."""
        begun = self.start_ms is None or self.start_ms <= instant_ms
        return begun and (self.end_ms is None or instant_ms < self.end_ms)

    def arm_of(self, user_id: str) -> Arm | None:
        """The user's arm; None for a user whom no arm takes."""
        arm = self.arm_of_bucket[bucket_of(self.salt, user_id)]
        return None if arm == UNASSIGNED else self.arms[arm]


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """All that the experiments file says, and what of it runs now."""

    declared: tuple[Experiment, ...] = ()
    running: tuple[Experiment, ...] = ()
    """In the order of the file: a user is in the first that takes them, so in one at most."""
    holdout: Holdout | None = None
    shadow: Shadow | None = None

    def at(self, instant_ms: int) -> "Experiments":
        """The same with what runs at the instant."""
        running = tuple(experiment for experiment in self.declared if experiment.runs(instant_ms))
        return self if running == self.running else replace(self, running=running)

    @cached_property
    def arms(self) -> Mapping[str, Arm]:
        """Every arm that a request may name, whether its experiment runs or not."""
        return {**ARMS, **{arm.name: arm for experiment in self.declared for arm in experiment.arms}}

    @cached_property
    def bundle_ids(self) -> frozenset[str]:
        """The bundles that arms and the shadow name."""
        named = {arm.bundle_id for arm in self.arms.values() if arm.bundle_id is not None}
        return frozenset(named if self.shadow is None else named | {self.shadow.bundle_id})

    def assigned(self, user_id: str) -> Arm:
        """The user's arm: `MILLRACE` outside every experiment.

        So for an anonymous user: without an id nobody can be kept in one arm from request to request, and a person
        who sees several arms tells nothing of any.
        """
        if not user_id or not self.running or (self.holdout is not None and self.holdout.holds(user_id)):
            return MILLRACE
        arms = (experiment.arm_of(user_id) for experiment in self.running)
        return next((arm for arm in arms if arm is not None), MILLRACE)


NO_EXPERIMENTS = Experiments()
