"""MLflow: runs with their parameters and metrics, and the registered bundles with their aliases."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from models.bundle import Bundle
from models.refusal import RefusalError

EXPERIMENT = "millrace"
MODEL = "millrace"
"""The registered model's name; its versions are bundles."""
CHAMPION = "champion"
CHALLENGER = "challenger"
SQLITE = "sqlite:///"


class RegistryError(RefusalError):
    """A registry that cannot be reached or does not hold what is asked for."""


class Registry:
    """The tracking store and model registry at one address."""

    def __init__(self, tracking_uri: str) -> None:
        """Opens (and on SQLite creates) the store. Raises `RegistryError`."""
        if tracking_uri.startswith(SQLITE):
            Path(tracking_uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
            self._experiment_id = self._experiment(tracking_uri)
        except (MlflowException, OSError, ValueError) as error:
            raise RegistryError(f"MLflow at {tracking_uri} cannot be opened: {error}") from error

    def log_run(self, run_name: str, parameters: Mapping[str, Any], report: Mapping[str, Any]) -> str:
        """Records one run, with every finite number of the report as a metric; returns MLflow's run id."""
        run = self._client.create_run(self._experiment_id, run_name=run_name)
        run_id = str(run.info.run_id)
        for name, parameter in _flat(parameters):
            self._client.log_param(run_id, name, parameter)
        for name, number in _flat(report):
            if isinstance(number, int | float) and not isinstance(number, bool):
                self._client.log_metric(run_id, name, float(number))
        self._client.set_terminated(run_id)
        return run_id

    def register(self, bundle: Bundle, run_id: str) -> str:
        """Registers the bundle as a version and returns it; a bundle that is registered keeps its version."""
        known = self.version_of(bundle.bundle_id)
        if known is not None:
            return known
        try:
            self._client.create_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise RegistryError(f"MLflow refuses the model {MODEL}: {error}") from error
        made = self._client.create_model_version(
            MODEL, source=bundle.path.resolve().as_uri(), run_id=run_id, tags={"bundle_id": bundle.bundle_id}
        )
        return str(made.version)

    def version_of(self, bundle_id: str) -> str | None:
        """The version under which a bundle is registered."""
        found = self._client.search_model_versions(f"name = '{MODEL}'")
        return next((str(made.version) for made in found if made.tags.get("bundle_id") == bundle_id), None)

    def set_alias(self, alias: str, version: str) -> None:
        """Points the alias at the version."""
        self._client.set_registered_model_alias(MODEL, alias, version)

    def bundle_of(self, alias: str) -> str | None:
        """The bundle that the alias points at."""
        try:
            found = self._client.get_model_version_by_alias(MODEL, alias)
        except MlflowException:  # no such model or alias yet
            return None
        return str(found.tags.get("bundle_id"))

    def tag(self, version: str, name: str, value: str) -> None:
        """Notes something on a version."""
        self._client.set_model_version_tag(MODEL, version, name, value)

    def _experiment(self, tracking_uri: str) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if tracking_uri.startswith(SQLITE):  # else MLflow would put artefacts below the working directory
            location = (Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts").resolve().as_uri()
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        key = prefix + re.sub(r"[^A-Za-z0-9_./ -]", "_at_", str(name))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        elif value is not None and not isinstance(value, list | tuple):
            yield key, value
