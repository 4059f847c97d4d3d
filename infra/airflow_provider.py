"""What Airflow learns of Millrace as one of its providers: the names of its assets in OpenLineage.

Airflow finds it by the entry point `apache_airflow_provider` in pyproject.toml.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Dataset

SCHEME = "millrace"
"""Of the URIs of `infra.airflow.ASSETS`, and the namespace of the datasets that they are in lineage events."""


def provider_info() -> dict[str, Any]:
    """The provider's description, as Airflow's schema of provider metadata has it."""
    return {
        "package-name": "millrace",
        "name": "Millrace",
        "description": "Assets of the recommender.",
        "asset-uris": [
            {
                "schemes": [SCHEME],
                "handler": None,
                "to_openlineage_converter": f"{__name__}.openlineage_dataset",
            }
        ],
    }


def openlineage_dataset(asset: Any, lineage_context: Any) -> "Dataset":  # noqa: ARG001 - Airflow's interface
    """The dataset of an asset: `millrace://lake/silver/events` is `lake/silver/events` of `millrace`."""
    from openlineage.client.event_v2 import Dataset  # in Airflow's environment only

    return Dataset(namespace=SCHEME, name=asset.uri.removeprefix(f"{SCHEME}://"))
