"""From real Delta tables to a promoted bundle by the commands that Airflow runs, scored where there is no torch."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models import refusal, train_candidates, train_ranker
from models.als import AlsConfig
from models.arrays import load_arrays
from models.bundle import Bundle
from models.evaluate_bundle import read_test_examples
from models.item_table import ItemTable
from models.lake import read_events
from models.probes import probe_inputs
from models.ranker.config import RankerConfig
from models.ranker.optimiser import AdamW
from models.sources.als import AlsSource
from models.splits import CALIBRATION_SHARE, JUDGING_SHARE, time_split, user_draw
from models.train_sources import feedback, train_als
from models.workspace import CANDIDATES, TEST_EXAMPLES, latest_run
from tests.conftest import ROOT
from tests.ranker_examples import small
from tests.synthetic_lake import synthetic_lake

APP, SERVE = ROOT / ".venv/app/bin/python", ROOT / ".venv/serve/bin/python"

SCORE = """
import json, sys
from pathlib import Path
import numpy as np
from features.specs import Entity, features_of
from models.bundle import Bundle, champion_id
from models.history import UserHistory
from models.ranker_inputs import assemble_request
from models.sources import RetrievalRequest
from models.sources.merge import DEFAULT_QUOTAS, merge
from models.value import value

bundles, now_ms = Path(sys.argv[1]), int(sys.argv[2])
bundle = Bundle.load(bundles / champion_id(bundles))
table = bundle.item_table
liked = np.flatnonzero(table.category_code == 1)[:5].astype(np.int32)
history = UserHistory(item_index_L=liked, weight_L=np.full(5, 2, np.float32), time_ms_L=np.full(5, now_ms - 60_000))
request = RetrievalRequest(
    instant_ms=now_ms,
    item_table=table,
    history_index_L=liked,
    history_weight_L=history.weight_L,
    history_age_ms_L=now_ms - history.time_ms_L,
    excluded_I=np.zeros(len(table), np.bool_),
    rng=np.random.default_rng(0),
)
merged = merge({n: s.candidates(request, DEFAULT_QUOTAS[n]) for n, s in bundle.sources.items()}, DEFAULT_QUOTAS)
windows = {e: np.zeros((len(merged.item_index_C), len(features_of(e)))) for e in Entity}
for f, feature in enumerate(features_of(Entity.USER_CATEGORY)):
    if feature.name.startswith("user_category_clicks"):
        windows[Entity.USER_CATEGORY][table.category_code[merged.item_index_C] == 1, f] = 5
inputs = assemble_request(
    layout=bundle.ranker.layout,
    item_table=table,
    item_index_C=merged.item_index_C,
    instant_ms=now_ms,
    user_features_F=windows[Entity.USER][0],
    user_category_CF=windows[Entity.USER_CATEGORY],
    item_CF=windows[Entity.ITEM],
    creator_CF=windows[Entity.CREATOR],
    category_CF=windows[Entity.CATEGORY],
    history=history,
    device="phone",
)
best = merged.item_index_C[np.argsort(-value(bundle.ranker.score(inputs), bundle.value_weights))[:10]]
forbidden = [m for m in ("torch", "pydantic", "mlflow", "sklearn", "deltalake", "lightgbm") if m in sys.modules]
print(json.dumps({
    "bundle_id": bundle.bundle_id,
    "candidates": len(merged.item_index_C),
    "share": float((table.category_code[best] == 1).mean()),
    "forbidden": forbidden,
}))
"""


def command(module: str, *flags: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(APP), "-m", module, *flags], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == expect, done.stderr[-3_000:]
    return done


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    synthetic_lake(seed=3, users=80, items=120, slates=15).write(root / "lake")
    return {
        "--lake": str(root / "lake"),
        "--workspace": str(root / "workspace"),
        "--bundles": str(root / "bundles"),
        "--tracking-uri": f"sqlite:///{root}/mlflow/mlflow.db",
    }


def flags_of(paths: dict[str, str], *names: str) -> list[str]:
    return [part for name in names for part in (name, paths[name])]


@pytest.fixture(scope="module")
def promoted(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The reports of the three commands."""
    out = tmp_path_factory.mktemp("reports")
    steps = {
        "train_candidates": ("--lake", "--workspace"),
        "train_ranker": ("--lake", "--workspace"),
        "promote": ("--workspace", "--bundles", "--tracking-uri"),
    }
    for step, names in steps.items():
        seed = () if step == "promote" else ("--seed", "5")
        command(f"models.{step}", *flags_of(paths, *names), *seed, "--report", str(out / step))
    return {step: json.loads((out / step).read_text()) for step in steps}


def test_reports_name_every_source_and_head(promoted: dict[str, dict]) -> None:
    sources = promoted["train_candidates"]["sources"]
    assert set(sources) == {"als", "item2item", "popular", "trending", "content", "follow", "exploration", "merged"}
    assert sources["item2item"]["ndcg@10"] > sources["exploration"]["ndcg@10"]
    assert sources["merged"]["recall"] >= max(sources[name]["recall"] for name in ("als", "content", "popular"))
    heads = promoted["train_ranker"]["heads"]
    assert set(heads) == {"click", "completion", "like", "share", "hide", "watch_fraction"}
    click = heads["click"]
    assert click["auc"] > click["popularity"]["auc"] + 0.05
    assert click["log_loss"] < click["training_rate"]["log_loss"]
    low, high = click["auc_interval"]
    assert low < click["auc"] < high
    slates = promoted["train_ranker"]["slate_ndcg"]
    assert slates["millrace"] > slates["popularity"]


def test_what_is_shipped_knows_the_newest_examples_and_is_judged_by_users_that_it_does_not_know(
    promoted: dict[str, dict], paths: dict[str, str]
) -> None:
    report = promoted["train_ranker"]
    shipped, reported = report["shipped"]["examples"], report["examples"]
    judging = read_test_examples(latest_run(Path(paths["--workspace"]), "ranker") / TEST_EXAMPLES)
    draws = [user_draw(user_id) for user_id in judging["user_id"].to_pylist()]
    assert len(draws) == shipped["test"] > 0 and max(draws) < JUDGING_SHARE
    assert min(judging["t_ms"].to_pylist()) >= report["split"]["validation_start_ms"]
    everybody = sum(reported.values())
    assert shipped["train"] + shipped["validation"] < everybody - shipped["test"]
    assert shipped["train"] == pytest.approx(everybody * (1 - JUDGING_SHARE - CALIBRATION_SHARE), rel=0.15)


def test_the_als_that_is_shipped_knows_nothing_of_the_judges_and_the_ranker_reads_it(
    promoted: dict[str, dict], paths: dict[str, str]
) -> None:
    report, bundles = promoted["train_candidates"], Path(paths["--bundles"])
    bundle = Bundle.load(bundles / promoted["promote"]["bundle_id"])
    events, version = read_events(Path(paths["--lake"]), bundle.item_table)
    held_out_U = np.array([user_draw(user_id) < JUDGING_SHARE + CALIBRATION_SHARE for user_id in events.user_ids])
    known = events.where(~held_out_U[events.user_N])
    assert 0 < len(known) < len(events) and report["als_knows_judges"] is False
    config = AlsConfig.model_validate(report["config"]["als"])
    expected = train_als(feedback(known, len(bundle.item_table)), config, report["seed"])
    np.testing.assert_allclose(
        bundle.sources["als"].to_arrays()["item_factors_ID"], expected.item_factors_ID, atol=1e-5
    )
    assert promoted["train_ranker"]["delta_versions"]["silver/events"] == version
    silent = probe_inputs(bundle, 20)
    told = replace(silent, affinity_CA=np.linspace(0, 1, 40, dtype=np.float32).reshape(20, 2))
    assert np.ptp(bundle.ranker.logits(told)[:, 0] - bundle.ranker.logits(silent)[:, 0]) > 0.01


@pytest.mark.parametrize("knows_the_test_part", [False, True])
def test_factors_made_by_spark_take_the_place_of_als_and_are_judged_by_what_they_do_not_know(
    promoted: dict[str, dict], paths: dict[str, str], tmp_path: Path, *, knows_the_test_part: bool
) -> None:
    ours = latest_run(Path(paths["--workspace"]), CANDIDATES)
    item_ids = list(ItemTable.from_arrays(dict(np.load(ours / "items.npz", allow_pickle=False))).item_ids)
    factors_ID = np.load(ours / "sources" / "als.npz", allow_pickle=False)["item_factors_ID"][:, :8]
    rows = pa.table({"item_id": item_ids, "factors": factors_ID.tolist()})
    (tmp_path / "als" / "item_factors").mkdir(parents=True)
    pq.write_table(rows, tmp_path / "als" / "item_factors" / "part.parquet")
    newest_ms = promoted["train_candidates"]["test_start_ms"] - (0 if knows_the_test_part else 1)
    config = {"embedding_dim": 8, "alpha": 3.0, "regularization": 0.1}
    (tmp_path / "als" / "als.json").write_text(json.dumps({"config": config, "newest_event_ms": newest_ms}))
    report = train_candidates.train(Path(paths["--lake"]), tmp_path / "workspace", 5, "given", tmp_path / "als")
    assert report["config"]["als"] == config
    assert ("als" in report["sources"]) is not knows_the_test_part
    run = latest_run(tmp_path / "workspace", CANDIDATES)
    table, examples = ItemTable.from_arrays(load_arrays(run / "items.npz")), small().examples
    split = time_split(examples.time_ms_N)
    untold = train_ranker.with_affinities(examples, split, Path(paths["--lake"]), run, table, 5)
    assert untold == (examples, examples, {}), "they know the judges"
    kept = AlsSource.from_arrays(dict(np.load(run / "sources" / "als.npz", allow_pickle=False)))
    np.testing.assert_array_equal(kept.item_factors_ID, factors_ID)
    assert (kept.alpha, kept.regularization, kept.frequency_exponent) == (3.0, 0.1, 1.0)


def test_the_champion_scores_in_the_serving_environment_and_follows_recent_taste(
    promoted: dict[str, dict], paths: dict[str, str]
) -> None:
    now_ms = promoted["train_ranker"]["split"]["test_start_ms"]
    done = subprocess.run(
        [str(SERVE), "-c", SCORE, paths["--bundles"], str(now_ms)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    answer = json.loads(done.stdout)
    assert answer["bundle_id"] == promoted["promote"]["bundle_id"]
    assert answer["candidates"] > 50
    assert answer["share"] >= 0.5
    assert answer["forbidden"] == []


def test_training_again_with_the_seed_gives_the_same_bundle_and_promotes_it_again(
    promoted: dict[str, dict], paths: dict[str, str], tmp_path: Path
) -> None:
    for step in ("train_candidates", "train_ranker"):
        command(f"models.{step}", *flags_of(paths, "--lake", "--workspace"), "--seed", "5")
    report = tmp_path / "report.json"
    command("models.promote", *flags_of(paths, "--workspace", "--bundles", "--tracking-uri"), "--report", str(report))
    again = json.loads(report.read_text())
    for name in ("bundle_id", "version"):
        assert again[name] == promoted["promote"][name]
    assert again["previous_champion"] == again["bundle_id"]


def test_a_training_that_ends_between_its_two_networks_goes_on_to_the_same_ones(
    promoted: dict[str, dict], paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, fitted = Path(paths["--workspace"]), []
    shutil.copytree(ours / CANDIDATES, tmp_path / CANDIDATES)

    def dies_at_the_second(*given: Any) -> train_ranker.Fitted:
        if fitted:
            raise KeyboardInterrupt
        fitted.append(fit(*given))
        return fitted[0]

    fit = train_ranker.fit
    monkeypatch.setattr(train_ranker, "fit", dies_at_the_second)
    asked = (Path(paths["--lake"]), tmp_path, 5, RankerConfig(), "again")
    with pytest.raises(KeyboardInterrupt):
        train_ranker.train(*asked)
    assert [path.name for path in (tmp_path / "ranker").glob("*")] == ["checkpoint-reported.pt"]
    monkeypatch.setattr(train_ranker, "fit", fit)
    report = train_ranker.train(*asked)
    assert report["heads"]["click"]["auc"] == promoted["train_ranker"]["heads"]["click"]["auc"]
    first, again = (latest_run(root, "ranker") / "ranker.onnx" for root in (ours, tmp_path))
    assert first.read_bytes() == again.read_bytes()
    assert not list((tmp_path / "ranker").glob("checkpoint*"))


def test_a_worse_ranker_is_refused_with_the_gate_and_the_champion_stays(
    promoted: dict[str, dict], paths: dict[str, str], tmp_path: Path
) -> None:
    """One epoch at a hopeless learning rate: worse than the champion on the same examples."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"epochs": 1, "learning_rate": 1e-9}))
    command("models.train_ranker", *flags_of(paths, "--lake", "--workspace"), "--config", str(config))
    names = ("--workspace", "--bundles", "--tracking-uri")
    done = command("models.promote", *flags_of(paths, *names), expect=1)
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "champion_auc" in sentence and "missed by" in sentence and "Traceback" not in done.stderr
    champion = json.loads((Path(paths["--bundles"]) / "champion.json").read_text())
    assert champion["bundle_id"] == promoted["promote"]["bundle_id"]


@pytest.mark.parametrize(
    ("module", "flags", "says"),
    [
        ("models.train_candidates", ("--lake", "/nowhere", "--workspace", "/tmp/none"), "no Delta table at"),
        ("models.train_ranker", ("--lake", "/nowhere", "--workspace", "/nowhere"), "run python -m models.train_cand"),
        (
            "models.promote",
            ("--workspace", "/nowhere", "--bundles", "/x", "--tracking-uri", "sqlite:////x"),
            "no ranker",
        ),
        ("models.train_ranker", ("--lake", "x", "--workspace", "x", "--config", "/nowhere.json"), "No such file"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    module: str,
    flags: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which has imported torch already: a process of its own takes ten seconds for that."""
    monkeypatch.setattr(sys, "argv", [module, *flags])
    with pytest.raises(SystemExit) as ended:
        refusal.run(import_module(module).main)
    said = capsys.readouterr().err
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 1
    assert says in sentence and "Traceback" not in said


def test_the_optimiser_makes_the_updates_of_torch() -> None:
    torch.manual_seed(0)
    start, target = torch.randn(6, 3), torch.randn(6, 3)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own, reference = AdamW([ours], 0.01, 0.1), torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for _ in range(20):
        for parameter, optimiser in ((ours, own), (theirs, reference)):
            optimiser.zero_grad()
            ((parameter - target) ** 2).sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours, theirs)
