"""MLflow: runs with their parameters and metrics, and the registered bundles with their aliases."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from models.refusal import RefusalError

EXPERIMENT = "millrace"
MODEL = "millrace"
"""The registered model's name; its versions are bundles."""
CHAMPION = "champion"
CHALLENGER = "challenger"
SQLITE = "sqlite:///"
BATCH = 100
"""Parameters, and metrics, of one call to MLflow: its limit."""


class RegistryError(RefusalError):
    """A registry that cannot be reached or does not hold what is asked for."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered bundle."""

    version: str
    """A number, counted by MLflow from 1."""
    bundle_id: str
    path: str
    """Where its directory was when it was registered."""
    run_id: str
    """MLflow's run of its ranker; empty when that is not known."""
    registered_at_ms: int
    tags: dict[str, str] = field(default_factory=dict)


class Registry:
    """The tracking store and model registry at one address. Its methods raise `RegistryError`."""

    def __init__(self, tracking_uri: str) -> None:
        """Opens (and on SQLite creates) the store. Raises `RegistryError`."""
        self._tracking_uri = tracking_uri
        with self._told():
            if tracking_uri.startswith(SQLITE):
                Path(tracking_uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self._experiment_id = self._experiment(tracking_uri)

    def log_run(self, run_name: str, parameters: Mapping[str, Any], report: Mapping[str, Any]) -> str:
        """Records one run, with every finite number of the report as a metric; returns MLflow's run id."""
        with self._told():
            run = self._client.create_run(self._experiment_id, run_name=run_name)
            run_id, at_ms = str(run.info.run_id), int(run.info.start_time)
            numbers = {name: number for name, number in _flat(report) if _is_number(number)}
            metrics = [Metric(name, float(number), at_ms, 0) for name, number in numbers.items()]
            params = [Param(name, str(parameter)) for name, parameter in _flat(parameters)]
            for start in range(0, max(len(metrics), len(params)), BATCH):  # a call each would take 33 ms each
                part = slice(start, start + BATCH)
                self._client.log_batch(run_id, metrics=metrics[part], params=params[part])
            self._client.set_terminated(run_id)
        return run_id

    def register(self, bundle_id: str, path: Path, run_id: str | None, tags: Mapping[str, str]) -> str:
        """Registers a bundle as a version and returns it; a bundle that is registered keeps its version."""
        known = self.version_of(bundle_id)
        if known is not None:
            return known
        with self._told():
            try:
                self._client.create_registered_model(MODEL)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self._client.create_model_version(
                MODEL, source=path.resolve().as_uri(), run_id=run_id, tags={**tags, "bundle_id": bundle_id}
            )
        return str(made.version)

    def versions(self) -> list[Version]:
        """Every registered bundle, oldest first."""
        with self._told():
            found = self._client.search_model_versions(f"name = '{MODEL}'")
        versions = [
            Version(
                version=str(made.version),
                bundle_id=made.tags.get("bundle_id", ""),
                path=str(made.source or "").removeprefix("file://"),
                run_id=made.run_id or "",
                registered_at_ms=int(made.creation_timestamp),
                tags=dict(made.tags),
            )
            for made in found
        ]
        return sorted(versions, key=lambda version: int(version.version))

    def version_of(self, bundle_id: str) -> str | None:
        """The version under which a bundle is registered."""
        return next((made.version for made in self.versions() if made.bundle_id == bundle_id), None)

    def aliases(self) -> dict[str, str]:
        """The bundle that each alias points at; none before the first registration."""
        with self._told():
            try:
                found = self._client.get_registered_model(MODEL).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        bundles = {made.version: made.bundle_id for made in self.versions()}
        return {alias: bundles[str(version)] for alias, version in found.items() if str(version) in bundles}

    def bundle_of(self, alias: str) -> str | None:
        """The bundle that the alias points at."""
        return self.aliases().get(alias)

    def set_alias(self, alias: str, version: str) -> None:
        """Points the alias at the version."""
        with self._told():
            self._client.set_registered_model_alias(MODEL, alias, version)

    def drop_alias(self, alias: str) -> None:
        """Removes the alias; one that is not there stays so."""
        with self._told():
            self._client.delete_registered_model_alias(MODEL, alias)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Notes things on a version; each replaces what was noted under its name."""
        with self._told():
            for name, said in tags.items():
                self._client.set_model_version_tag(MODEL, version, name, said)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError, ValueError) as error:
            wrong = " ".join(str(error).split())
            raise RegistryError(f"MLflow at {self._tracking_uri} cannot be used: {wrong}") from error

    def _experiment(self, tracking_uri: str) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if tracking_uri.startswith(SQLITE):  # else MLflow would put artefacts below the working directory
            location = (Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts").resolve().as_uri()
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        key = prefix + re.sub(r"[^A-Za-z0-9_./ -]", "_at_", str(name))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        elif value is not None and not isinstance(value, list | tuple):
            yield key, value
