"""Every bundle there is, registered or only lying there, and what an id, a version or an alias means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST, BundleError, champion_id, read_manifest
from models.promotion import GATES
from models.refusal import RefusalError
from models.registry import CHALLENGER, CHAMPION, Registry, Version


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One bundle as the list shows it. What is not known is None or empty."""

    bundle_id: str
    version: str
    """Empty for a directory that is not registered."""
    made_at_ms: int | None
    aliases: tuple[str, ...]
    """MLflow's, but `champion` is what champion.json names."""
    click_auc: float | None
    slate_ndcg: float | None
    gates: str
    """`passed`, `refused: <gates>`, `overridden: <gates>`, or empty when it was never judged."""
    origin: str
    present: bool
    """Whether its directory is there with a manifest that can be read."""
    tags: dict[str, str]
    run_id: str = ""


def entries(registry: Registry, bundles_dir: Path) -> list[Entry]:
    """Registered bundles by version, then directories that are not registered by id. Raises `BundleError`."""
    served = champion_id(bundles_dir)
    aliases = {alias: bundle_id for alias, bundle_id in registry.aliases().items() if alias != CHAMPION}
    if served is not None:
        aliases[CHAMPION] = served
    versions = registry.versions()
    known = {version.bundle_id for version in versions}
    unregistered = [name for name in _directories(bundles_dir) if name not in known]
    return [_entry(bundles_dir, name, version, aliases) for name, version in _all(versions, unregistered)]


def resolve(known: Sequence[Entry], text: str) -> Entry:
    """The bundle meant by `champion`, `challenger`, a version number, an id or the unique beginning of one.

    Raises `RefusalError` when there is none, or more than one.
    """
    for means in (
        lambda entry: text in entry.aliases,
        lambda entry: text == entry.bundle_id,
        lambda entry: text == entry.version,
        lambda entry: bool(text) and (entry.bundle_id.startswith(text) or entry.bundle_id == f"bundle-{text}"),
        lambda entry: bool(text) and entry.bundle_id.startswith(f"bundle-{text}"),
    ):
        found = [entry for entry in known if means(entry)]
        if len(found) == 1:
            return found[0]
        if found:
            meant = ", ".join(entry.bundle_id for entry in found)
            raise RefusalError(f"{text!r} begins more than one id: {meant}; give more of it.")
    if text in (CHAMPION, CHALLENGER):
        raise RefusalError(f"there is no {text} yet; see millrace models list.")
    raise RefusalError(
        f"no bundle {text!r}; give champion, challenger, a version or the beginning of an id: see millrace models list."
    )


def _all(versions: Sequence[Version], unregistered: Sequence[str]) -> list[tuple[str, Version | None]]:
    return [*((version.bundle_id, version) for version in versions), *((name, None) for name in unregistered)]


def _directories(bundles_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in bundles_dir.glob(f"[!.]*/{MANIFEST}"))


def _entry(bundles_dir: Path, bundle_id: str, version: Version | None, aliases: dict[str, str]) -> Entry:
    tags = version.tags if version else {}
    manifest = _manifest(bundles_dir / bundle_id)
    metrics = (manifest or {}).get("metrics", {})
    made_at_ms = (manifest or {}).get("created_at_ms") or tags.get("made_at_ms")
    return Entry(
        bundle_id=bundle_id,
        version=version.version if version else "",
        made_at_ms=None if made_at_ms is None else int(made_at_ms),
        aliases=tuple(sorted(alias for alias, named in aliases.items() if named == bundle_id)),
        click_auc=_number(metrics.get("heads", {}).get("click", {}).get("auc"), tags.get("click_auc")),
        slate_ndcg=_number(metrics.get("slate_ndcg", {}).get("millrace"), tags.get("slate_ndcg")),
        gates=tags.get(GATES, ""),
        origin=tags.get("origin", ""),
        present=manifest is not None,
        tags=tags,
        run_id=version.run_id if version else "",
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(path)
    except BundleError:
        return None


def _number(*given: object) -> float | None:
    return next((float(str(value)) for value in given if value is not None), None)
