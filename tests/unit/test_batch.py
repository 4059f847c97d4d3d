"""The parts of the batch room that need neither a JVM nor a broker."""

from pathlib import Path

import pytest

from batch.command import fail, write_report
from batch.kafka_source import CheckpointError, check_together, checkpointed_offsets
from batch.point_in_time import Sweep, finalise_sql
from features.names import MS_PER_DAY
from features.specs import FINE_WINDOW_MAX_MS, WINDOWED_FEATURES, Entity, features_of


def checkpoint(folder: Path, planned: int, committed: int | None) -> Path:
    for name in ("offsets", "commits"):
        (folder / name).mkdir(parents=True)
    for batch in range(planned + 1):
        (folder / "offsets" / f"{batch}").write_text(f'v1\n{{}}\n{{"events":{{"0":{batch * 10 + 5},"1":7}}}}')
    if committed is not None:
        (folder / "commits" / f"{committed}").write_text("v1\n{}")
        (folder / "commits" / f".{committed}.crc").write_bytes(b"")
    return folder


def test_the_newest_committed_batch_says_what_is_needed_next(tmp_path: Path) -> None:
    assert checkpointed_offsets(tmp_path / "none") == {}
    assert checkpointed_offsets(checkpoint(tmp_path / "planned", 0, None)) == {}
    assert checkpointed_offsets(checkpoint(tmp_path / "both", 2, 1)) == {"events": {0: 15, 1: 7}}


def test_table_and_checkpoint_are_restored_together(tmp_path: Path) -> None:
    read = checkpoint(tmp_path / "read", 0, 0)
    check_together(tmp_path / "none", "bronze", 0)
    check_together(read, "bronze", 12)
    check_together(checkpoint(tmp_path / "first-run-killed", 0, None), "bronze", 12)
    with pytest.raises(CheckpointError, match="reading again would double them"):
        check_together(tmp_path / "none", "bronze", 12)
    with pytest.raises(CheckpointError, match="they would be missing"):
        check_together(read, "bronze", 0)
    check_together(read, "bronze", 0, emptied=True)


def test_every_feature_is_compiled_from_the_list() -> None:
    compiled = [feature.name for entity in Entity for feature in Sweep.of(entity).features]
    assert sorted(compiled) == sorted(feature.name for feature in WINDOWED_FEATURES)
    for entity in Entity:
        sweep = Sweep.of(entity)
        assert all(tile == MS_PER_DAY for window, tile in sweep.windows if window > FINE_WINDOW_MAX_MS)
        for feature in features_of(entity):
            assert sweep.windows[sweep.kind_of(feature) - 1][0] == feature.window_ms
            assert repr(feature.default) in finalise_sql(feature, ["a", "b"]) or feature.is_integer


def test_a_report_is_replaced_at_once_and_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reports" / "run.json"
    write_report({"rows": 1}, path)
    assert path.read_text() == '{"rows": 1}\n'
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]
    assert fail("job", ValueError("lost\n  records\n\nat java.lang")) == 1
    assert capsys.readouterr().err == "job: lost records\n"
