"""Which bundle is served, and which were: `champion.json`, the one truth that MLflow's alias follows.

    {"bundle_id": "bundle-…", "before": ["bundle-…", …], "history": [{"bundle_id": …, "at_ms": …, …}, …]}

One file, so that the champion and its history change in one step; whatever is killed when, both are whole.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.bundle import CHAMPION, BundleError, champion_record, read_manifest
from models.refusal import RefusalError
from models.workspace import atomic_json

LOCK = ".promotion.lock"
KEPT = 200
"""The newest champions and switches that the file remembers; at one promotion an hour, eight days of them."""

Action = Literal["promote", "force", "weights", "rollback"]


class Switch(BaseModel):
    """One change of the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str
    at_ms: int
    action: Action
    replaced: str | None
    """The champion until then; None for the first."""
    reason: str = ""
    """Why, where somebody or the monitor said so."""


class Champions(BaseModel):
    """What `champion.json` says; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_id: str | None = None
    """The champion; None before the first promotion."""
    before: tuple[str, ...] = ()
    """The champions that it stands upon, oldest first: where roll-backs go, one after the other."""
    history: tuple[Switch, ...] = ()
    """Every change, oldest first, roll-backs among them."""

    def were(self) -> set[str]:
        """Every bundle that is known to have been champion before."""
        return {switch.bundle_id for switch in self.history} | set(self.before)


def read_champions(bundles_dir: Path) -> Champions:
    """The champion and its history. Raises `BundleError` on an unreadable file."""
    record = champion_record(bundles_dir)
    if record is None:
        return Champions()
    try:
        return Champions.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{bundles_dir / CHAMPION} cannot be read: {where}: {first['msg']}; correct it.") from None


def set_champion(
    bundles_dir: Path, bundle_id: str, action: Action = "promote", at_ms: int = 0, reason: str = ""
) -> None:
    """Names the bundle to serve and notes the change, in one step; naming the champion again notes nothing.

    A roll-back forgets the champions above the one it goes to, so that rolling back twice goes back twice.
    Raises `BundleError` when the bundle is not there.
    """
    read_manifest(bundles_dir / bundle_id)
    now = read_champions(bundles_dir)
    before, history = now.before, now.history
    if bundle_id != now.bundle_id:
        switch = Switch(bundle_id=bundle_id, at_ms=at_ms, action=action, replaced=now.bundle_id, reason=reason)
        history += (switch,)
        if action == "rollback" and bundle_id in before:
            before = before[: len(before) - 1 - before[::-1].index(bundle_id)]
        elif now.bundle_id is not None:
            before += (now.bundle_id,)
    new = Champions(bundle_id=bundle_id, before=before[-KEPT:], history=history[-KEPT:])
    atomic_json(bundles_dir / CHAMPION, new.model_dump())


@contextmanager
def promotion_lock(bundles_dir: Path) -> Iterator[None]:
    """Held while a champion is judged and switched, so that no two promotions compare with the same one.

    The kernel releases it with the process. Raises `RefusalError` when it is held already.
    """
    bundles_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(bundles_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, bundles_dir)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, bundles_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RefusalError(f"another promotion or roll-back works in {bundles_dir}; try again when it ends.") from None
