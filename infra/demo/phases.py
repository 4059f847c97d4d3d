"""The demo's clock and voice: what ran when, how long it took, and what the user is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console


@dataclass(kw_only=True)
class Phases:
    """Times the named phases of one run and says their progress on the console."""

    console: Console
    began_s: float = field(default_factory=time.monotonic)
    began_ms: int = field(default_factory=lambda: Phases.now_ms())
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Each phase's name, start_s since the beginning, and seconds."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block; a phase that fails is not recorded, since the run ends with it."""
        start_s = time.monotonic() - self.began_s
        self.console.print(f"[bold]{name}[/bold]")
        yield
        seconds = time.monotonic() - self.began_s - start_s
        self.rows.append({"name": name, "start_s": round(start_s, 1), "seconds": round(seconds, 1)})

    @staticmethod
    def now_ms() -> int:
        """The wall clock, in milliseconds UTC."""
        return time.time_ns() // 1_000_000

    def say(self, line: str) -> None:
        """One line of progress, with the seconds since the beginning."""
        self.console.print(f"  {time.monotonic() - self.began_s:5.0f} s  {line}", markup=False, highlight=False)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        return {row["name"]: row["seconds"] for row in self.rows}
