"""Great Expectations without files of its own but for Data Docs: one site a gate, one page a run.

`index.html` is the newest run; `run-<name>.html` stays as that run left it. The newest `KEPT_RUNS` are kept.
"""

import datetime
import shutil
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations import ExpectationSuite
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

KEPT_RUNS = 50
_SITE = "docs"
_PREFIX = "run-"


class Judge:
    """One run's validations, in memory."""

    def __init__(self, now_ms: int) -> None:
        config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(), analytics_enabled=False)
        self._context: AbstractDataContext = gx.get_context(mode="ephemeral", project_config=config)
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._tables = self._context.data_sources.add_pandas("lake")
        self._run_id = RunIdentifier(run_time=datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC))

    def validate(self, rows: pd.DataFrame, suite: ExpectationSuite) -> ExpectationSuiteValidationResult:
        """Holds the rows against the suite, for `publish` to show. Results name the index of each row that fails."""
        data = self._tables.add_dataframe_asset(suite.name).add_batch_definition("sample")
        definition = gx.ValidationDefinition(name=suite.name, data=data, suite=self._context.suites.add(suite))
        added = self._context.validation_definitions.add(definition)
        return added.run(batch_parameters={"dataframe": rows}, run_id=self._run_id, result_format="COMPLETE")

    def publish(self, site: Path, run_name: str) -> Path:
        """Builds the site of what was validated, and returns this run's page."""
        backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site.absolute())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        builder: Any = {"class_name": "SiteBuilder", "store_backend": backend, "site_index_builder": index}
        self._context.add_data_docs_site(_SITE, builder)
        self._context.build_data_docs(site_names=[_SITE])
        page = site / page_name(run_name)
        shutil.copyfile(site / "index.html", page)
        _prune(site)
        return page


def page_name(run_name: str) -> str:
    """File name of a run's page."""
    return f"{_PREFIX}{run_name}.html"


def _prune(site: Path) -> None:
    """Removes what is older than the newest runs: their pages, and their results, in folders named by the instant."""
    pages = sorted(site.glob(f"{_PREFIX}*.html"), key=lambda page: page.stat().st_mtime_ns)
    for page in pages[:-KEPT_RUNS]:
        page.unlink()
    results = list(site.glob("validations/*/*/*"))
    kept = set(sorted({folder.name for folder in results})[-KEPT_RUNS:])
    for folder in results:
        if folder.name not in kept:
            shutil.rmtree(folder)
