"""`millrace experiments`: what it checks, shows and says of a user."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.commands import CommandError
from infra.settings import ROOT
from models.bundle import BundleError
from models.refusal import RefusalError
from serving.experiments_file import read_experiments
from tests.serving_bundle import write_tiny_bundle

EXAMPLE = ROOT / "infra" / "serving" / "experiments.toml"


def _said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def var_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(tmp_path))
    return tmp_path


def test_the_example_is_shown_with_arms_and_shares(var_dir: Path) -> None:
    shown = _said("experiments", "--file", str(EXAMPLE))
    assert re.search(r"likes-x2 +10.00% +9.50% +weight of like 1 *\n", shown)
    assert re.search(r"calm +33.00% +25.08% +creator_penalty 0.4, epsilon 0.2 *\n", shown)
    assert re.search(r"less-als +33.00% +25.08% +60 of als, 60 of exploration *\n", shown)
    assert "holdout: 5.00% of all users" in shown and "no challenger" in shown


def test_a_user_is_assigned_as_the_service_does(var_dir: Path) -> None:
    (var_dir / "experiments.toml").write_text(EXAMPLE.read_text())
    found = read_experiments(EXAMPLE)
    found = found.at(found.declared[0].start_ms or 0)
    for user in ("u1", "u2", "u3"):
        said = _said("experiments", "assign", user)
        assert said.startswith(f"{user}: {found.assigned(user).name}\nholdout: ")
        assert re.search(r"experiment slate: place 0\.\d{4}, ", said)


def test_what_is_wrong_is_refused(var_dir: Path) -> None:
    run = CliRunner().invoke
    with pytest.raises(CommandError, match=r"no experiments file at .*; copy infra/serving/experiments.toml there"):
        run(app, ["experiments"], catch_exceptions=False)
    file = var_dir / "experiments.toml"
    file.write_text("[[experiment]]\n")
    with pytest.raises(RefusalError, match="unknown key experiment; allowed: holdout, shadow, experiments"):
        run(app, ["experiments"], catch_exceptions=False)
    bundles = var_dir / "bundles"
    bundle = write_tiny_bundle(bundles)
    file.write_text(f'[shadow]\nbundle = "{bundle.name}"\nshare = 0.05\n')
    assert f"shadow: {bundle.name} scores 5.00% of the champion's answers" in _said("experiments")
    (bundle / "ranker.onnx").write_bytes(b"rubbish")
    with pytest.raises(BundleError, match=r"ranker.onnx is altered"):
        run(app, ["experiments"], catch_exceptions=False)
