"""The archives that the set-up has made are what the stack's broker and Spark's drivers take their classes from."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.class_archives import make
from infra.jvm import shared_classes
from infra.kafka import BrokerConfig
from infra.settings import jars_dir, load_settings
from infra.spark import submit_command


def broker_tool(tmp_path: Path) -> list[str]:
    broker = BrokerConfig(data_dir=tmp_path, jars_dir=jars_dir("kafka"), port=1, controller_port=2)
    at = broker.command.index("kafka.Kafka")
    return [*broker.command[:at], "kafka.tools.StorageTool", "random-uuid"]


def spark_driver(_: Path) -> list[str]:
    return submit_command(load_settings(), "lake_ingest", "--help")


@pytest.mark.parametrize(("name", "command"), [("kafka", broker_tool), ("spark", spark_driver)])
def test_classes_come_from_the_archive(name: str, command: Callable[[Path], list[str]], tmp_path: Path) -> None:
    log, flag = tmp_path / "loaded", shared_classes(name)
    words = [word.replace(flag, f"{flag} -Xlog:class+load:file={log}") for word in command(tmp_path)]
    # A flag of its own stands alone; Spark's are words of one argument.
    spread = [part for word in words for part in (word.split(" ") if word.startswith(flag) else [word])]
    subprocess.run(spread, check=True, capture_output=True)
    loaded = log.read_text().splitlines()
    archived = [line for line in loaded if line.endswith("shared objects file (top)")]
    assert len(archived) > len(loaded) / 4, "most of the others are Java's own"


def test_what_does_not_run_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"Spark ended with status \d+; .*") as failed:
        make("spark")
    assert "\n" not in str(failed.value)
    assert Path(shared_classes("spark").partition("=")[2]).is_file(), "the old archive stays"
