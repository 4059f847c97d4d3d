"""What a stage costs an item, learned from what it took, so that nothing is begun that cannot end in time."""

DEVIATIONS = 2.0
"""An estimate is the mean plus so many mean deviations: later than that is rare."""
MEAN_WEIGHT, DEVIATION_WEIGHT = 1 / 8, 1 / 4
"""As TCP smooths round trips (RFC 6298)."""
REFUSED_DECAY = 0.98
"""What an estimate becomes each time that it forbids: one slow moment must not forbid for ever."""
MAX_KNOWN = 256


class Cost:
    """Milliseconds an item, apart for each subject (such as a bundle) and size, in powers of two.

    Threads may share it: what two of them do at once may lose a sample, never more.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[float, float]] = {}

    def observe(self, subject: str, items: int, ms: float) -> None:
        """Learns that so many items took so long."""
        if items < 1:
            return
        at, got = (subject, items.bit_length()), ms / items
        if at not in self._known and len(self._known) >= MAX_KNOWN:
            self._known.clear()
        mean, deviation = self._known.get(at, (got, got / 2))
        deviation += DEVIATION_WEIGHT * (abs(got - mean) - deviation)
        self._known[at] = (mean + MEAN_WEIGHT * (got - mean), deviation)

    def estimate_ms(self, subject: str, items: int) -> float:
        """What so many items will hardly exceed; 0 while nothing is known of the subject."""
        at = self._nearest(subject, items)
        if at is None:
            return 0.0
        mean, deviation = self._known[at]
        return items * (mean + DEVIATIONS * deviation)

    def fitting(self, subject: str, items: int, budget_ms: float) -> int:
        """How many of the items can be done within the budget, by the estimate."""
        estimate_ms = self.estimate_ms(subject, items)
        if estimate_ms <= budget_ms:
            return items
        at = self._nearest(subject, items)
        if at is not None:
            mean, deviation = self._known[at]
            self._known[at] = (mean * REFUSED_DECAY, deviation * REFUSED_DECAY)
        return max(int(items * budget_ms / estimate_ms), 0) if budget_ms > 0 else 0

    def _nearest(self, subject: str, items: int) -> tuple[str, int] | None:
        """The known size nearest to that many items."""
        size = items.bit_length()
        if (subject, size) in self._known:
            return subject, size
        near = [at for at in list(self._known) if at[0] == subject]
        return min(near, key=lambda at: abs(at[1] - size), default=None)
