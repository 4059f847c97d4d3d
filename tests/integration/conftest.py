"""One Spark session for all tests that need one: starting it costs seconds."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPARK_JARS = Path(__file__).resolve().parent.parent.parent / ".jars" / "spark"
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
    "spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC",
    "--jars",
    ",".join(
        f"{SPARK_JARS}/{name}-*.jar"
        for name in ("delta", "spark-sql-kafka", "spark-token-provider-kafka", "kafka-clients", "commons-pool2")
    ),
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
    binaries = SPARK_JARS.parent.parent / ".venv/app/bin"
    return ["env", f"PYSPARK_PYTHON={binaries}/python", f"{binaries}/spark-submit", *SUBMIT_FLAGS]
