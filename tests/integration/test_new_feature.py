"""One line more in the list of features, and the feature is everywhere: in a copy of the project, in every engine."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAME = "user_unlikes_24h"
LINE = '    *_features(_U, "unlikes", _COUNT, _select("unlikes", EventType.UNLIKE), "24h"),\n'
BEFORE = '    *_features(_U, "impressions", '
LOOK = """
import json
import tempfile
from batch.offline_tables import windowed_values_at
from batch.point_in_time import Sweep
from features import reference, specs
from features.backends import open_backend
from features.definitions import build_definitions
from features.names import Topics
from features.quality import example_columns, examples_suite
from features.quality_limits import SuiteLimits
from features.specs import Entity, features_of
from features.tile_rows import TileRow
from features.tiles import USER_CATEGORY_TILES
from models.ranker_inputs import USER_FEATURES
from streaming.flink_sql import compile_job

name, now_ms = "user_unlikes_24h", 1_800_000_000_000
columns = [column.name for column in USER_CATEGORY_TILES.columns]
values = tuple(3 if column == "unlikes" else 0 for column in columns)
with tempfile.TemporaryDirectory() as folder, open_backend(f"{folder}/online.db") as store:
    start_ms = now_ms - now_ms % 60_000
    store.write_tiles("user_category", [TileRow(("u", "c"), 60_000, start_ms, 3, start_ms + 1, values)], {})
    read = store.read_user("u", now_ms).features_F
feature = next(feature for feature in specs.WINDOWED_FEATURES if feature.name == name)
views = {view.name: view for view in build_definitions(".").views}
expectations = examples_suite(SuiteLimits()).expectations
print(json.dumps({
    "version": specs.version(),
    "flink": "`unlikes` BIGINT" in compile_job(Topics(version="v"), "b:1").script,
    "spark": feature in Sweep.of(Entity.USER).features,
    "view": name in [field.name for field in views["user_activity"].features],
    "store": read[[each.name for each in features_of(Entity.USER)].index(name)],
    "quality": sum(getattr(each, "column", None) == name for each in expectations),
    "examples": name in example_columns(),
    "ranker": list(USER_FEATURES).index(name),
    "page": f"`{name}` | count of unlikes over 24h" in reference.page(),
}))
"""


def look(root: Path) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(root)}
    (root / "look.py").write_text(LOOK)
    command = [str(ROOT / ".venv/app/bin/python"), "look.py"]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for room in ("features", "streaming", "batch", "models"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_line_in_the_list_is_all_that_a_feature_needs(copy: Path) -> None:
    without = look(copy)
    assert "StopIteration" in without.stderr or "not in list" in without.stderr, "the feature is not there yet"
    specs = copy / "features" / "specs.py"
    text = specs.read_text()
    specs.write_text(text.replace(BEFORE, LINE + BEFORE, 1))
    done = look(copy)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[name] for name in ("flink", "spark", "view", "store", "examples", "ranker", "page")} == {
        "flink": True, "spark": True, "view": True, "store": 3.0, "examples": True, "ranker": 0, "page": True,
    }  # fmt: skip
    assert found["quality"] >= 2
    from features.specs import version

    assert found["version"] != version(), "another definition is another version"
