"""How this machine submits a Spark job of `batch/`: its jars, its driver, and the same as one command."""

from pathlib import Path

from infra.jvm import QUICK_COMPILER, shared_classes
from infra.settings import LOOPBACK, ROOT, Settings, environment_python, jars_dir

CONNECTORS = ("delta", "spark-sql-kafka", "spark-token-provider-kafka", "kafka-clients", "commons-pool2")
"""Beginnings of the jars that Spark lacks; the others beside them come with pyspark already."""
SMALL_JOBS = ("lake_ingest",)
"""Jobs that run every few minutes on what has come since, with the quick compiler alone. Measured with offline_features
on 2 cores: 30 thousand events in 49 s (processor time 68) against 53 (95) with both compilers, but 3 million in 252 s
(410) against 122 (222)."""
_COLLECTOR = "-XX:+UseParallelGC"


def driver_conf(settings: Settings, application: str) -> dict[str, str]:
    """Spark's configuration of the job's driver."""
    quick = [QUICK_COMPILER] if application in SMALL_JOBS else []
    options = [_COLLECTOR, shared_classes("spark"), *quick, *settings.spark_jvm_args.split()]
    return {"spark.driver.extraJavaOptions": " ".join(options)}


def job_file(application: str) -> Path:
    """`batch/<application>.py`."""
    return ROOT / "batch" / f"{application}.py"


def jars() -> str:
    """The connectors, as `--jars` reads them."""
    return ",".join(str(path) for name in CONNECTORS for path in sorted(jars_dir("spark").glob(f"{name}-*")))


def driver_memory(settings: Settings) -> str:
    """As `--driver-memory` reads it."""
    return f"{settings.spark_driver_mb}m"


def submit_environment() -> dict[str, str]:
    """Variables that every submission needs."""
    python = str(environment_python("app"))
    return {"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python, "SPARK_LOCAL_IP": LOOPBACK}


def submit_command(settings: Settings, application: str, *flags: str) -> list[str]:
    """Runs the job in the foreground, as the DAGs' operators do."""
    conf = [word for key, value in driver_conf(settings, application).items() for word in ("--conf", f"{key}={value}")]
    return [
        "env",
        *(f"{name}={value}" for name, value in submit_environment().items()),
        str(environment_python("app").parent / "spark-submit"),
        "--master",
        settings.spark_master,
        "--driver-memory",
        driver_memory(settings),
        "--jars",
        jars(),
        *conf,
        str(job_file(application)),
        *flags,
    ]
