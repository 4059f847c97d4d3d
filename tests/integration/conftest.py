"""One Spark session for all tests that need one: starting it costs seconds."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from infra.jvm import QUICK_COMPILER, shared_classes
from infra.settings import environment_python
from infra.spark import jars, submit_environment

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SUBMIT_FLAGS = (
    "--master",
    "local[2]",
    "--driver-memory",
    "1g",
    "--conf",
    "spark.driver.host=127.0.0.1",
    "--conf",
    "spark.driver.bindAddress=127.0.0.1",
    # Small data: compiling quickly beats compiling well.
    "--conf",
    f"spark.driver.extraJavaOptions={QUICK_COMPILER} -XX:+UseSerialGC {shared_classes('spark')}",
    "--jars",
    jars(),
)


@pytest.fixture(scope="session")
def spark() -> "Iterator[SparkSession]":
    """A local session as `batch.session` opens it, tuned for tables of a few rows."""
    from batch.session import open_session

    quoted = " ".join(f"'{flag}'" for flag in SUBMIT_FLAGS)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"{quoted} pyspark-shell"
    session = open_session("tests", shuffle_partitions=2)
    yield session
    session.stop()


@pytest.fixture(scope="session")
def submit() -> list[str]:
    """`spark-submit` of the app environment with the flags that the jobs need."""
    variables = [f"{name}={value}" for name, value in submit_environment().items()]
    return ["env", *variables, str(environment_python("app").parent / "spark-submit"), *SUBMIT_FLAGS]
