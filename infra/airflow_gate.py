"""A quality gate as an Airflow task, with a link to the Data Docs of the very attempt, passed or not."""

from typing import Any
from urllib.parse import quote

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseOperatorLink

from infra.airflow import quality_gate


class DataDocsLink(BaseOperatorLink):
    """The page that `batch.quality` names after run and attempt."""

    name = "Data Docs"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Its address on Airflow's own server (`infra/airflow_plugins/data_docs.py`)."""
        return f"{operator.docs_url}/{quote(f'run-{ti_key.run_id}.{ti_key.try_number}.html')}"


class GateOperator(BashOperator):
    """Runs the gates of some suites in the app environment; fails when one is shut."""

    operator_extra_links = (DataDocsLink(),)

    def __init__(self, *, suites: tuple[str, ...], **arguments: Any) -> None:
        command, self.docs_url = quality_gate(*suites)
        super().__init__(**command, **arguments)
