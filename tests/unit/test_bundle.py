"""The bundle: built as a whole, read back exactly, refused with a sentence when anything differs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features import specs
from models.arrays import save_arrays
from models.bundle import (
    CALIBRATION,
    CHAMPION,
    ITEMS,
    LAYOUT,
    MANIFEST,
    RANKER,
    WEIGHTS,
    Bundle,
    BundleError,
    champion_id,
)
from models.bundle_writer import BuildError, build_bundle, reweighted
from models.champions import read_champions, set_champion
from models.evaluate_bundle import BundleQuality, HeadCalibration, calibration_noise, head_calibration
from models.gates import GateLimits, refusal_of, run_gates
from models.item_table import train_item_table
from models.ranker.calibration import identity
from models.ranker.config import RankerConfig
from models.ranker.export import export
from models.ranker.network import RankerNetwork
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS, HISTORY_LENGTH, USER_FEATURES, RankerInputs, RankerLayout
from models.sources import SOURCE_TYPES
from models.sources.als import AlsSource
from models.sources.content import ContentSource
from models.sources.item2item import Item2ItemSource
from models.sources.popular import PopularSource
from models.value import DEFAULT_WEIGHTS, value
from models.workspace import (
    CANDIDATES,
    REPORT,
    WorkspaceError,
    atomic_directory,
    atomic_json,
    latest_run,
    new_run,
)
from tests.synthetic_lake import synthetic_lake


def random_inputs(candidates: int, seed: int = 0) -> RankerInputs:
    rng = np.random.default_rng(seed)

    def codes(*shape: int) -> np.ndarray:
        return rng.integers(0, 2, shape).astype(np.int32)

    def reals(*shape: int) -> np.ndarray:
        return rng.random(shape).astype(np.float32)

    return RankerInputs(
        user_UF=reals(1, len(USER_FEATURES)),
        device_U=np.zeros(1, np.int32),  # the layout knows no device
        hour_U=codes(1),
        history_item_UL=codes(1, HISTORY_LENGTH),
        history_category_UL=codes(1, HISTORY_LENGTH),
        history_creator_UL=codes(1, HISTORY_LENGTH),
        history_language_UL=codes(1, HISTORY_LENGTH),
        history_weight_UL=reals(1, HISTORY_LENGTH),
        history_age_ms_UL=reals(1, HISTORY_LENGTH),
        candidate_CF=reals(candidates, len(CANDIDATE_FEATURES)),
        static_CS=reals(candidates, 2),
        affinity_CA=reals(candidates, 2),
        item_C=codes(candidates),
        category_C=codes(candidates),
        creator_C=codes(candidates),
        language_C=codes(candidates),
        position_C=codes(candidates),
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One candidates run and one ranker run, untrained but whole."""
    root = tmp_path_factory.mktemp("workspace")
    table = train_item_table(synthetic_lake(users=4, items=30, slates=2).items)
    rng = np.random.default_rng(0)
    sources = {
        name: kind.from_arrays({})
        for name, kind in SOURCE_TYPES.items()
        if name in ("trending", "follow", "exploration")
    }
    sources["als"] = AlsSource(item_factors_ID=rng.random((30, 4), np.float32), regularization=0.1, alpha=1.0)
    sources["item2item"] = Item2ItemSource(
        neighbour_IN=rng.integers(0, 30, (30, 5)).astype(np.int32), similarity_IN=rng.random((30, 5), np.float32)
    )
    sources["popular"] = PopularSource(score_I=rng.random(30, np.float32))
    sources["content"] = ContentSource(affinity_KK=np.eye(len(table.categories), dtype=np.float32))
    metrics = {"recall@100": 0.5, "ndcg@10": 0.1, "recall": 0.4}
    with new_run(root, CANDIDATES, "c1") as draft:
        save_arrays(draft / ITEMS, table.to_arrays())
        for name, source in sources.items():
            save_arrays(draft / "sources" / f"{name}.npz", source.to_arrays())
        report = {"seed": 3, "delta_versions": {"silver/items": 1}, "sources": dict.fromkeys(sources, metrics)}
        atomic_json(draft / REPORT, report)
    sizes = table.trained
    layout = RankerLayout(
        items=sizes.items, categories=sizes.categories, creators=sizes.creators, languages=sizes.languages
    )
    with new_run(root, "ranker", "r1") as draft:
        export(RankerNetwork(layout, RankerConfig()), draft / RANKER, [random_inputs(4)])
        atomic_json(draft / LAYOUT, layout.to_json())
        atomic_json(draft / CALIBRATION, identity(len(HEADS)).to_json())
        heads = {head: {"auc": 0.7, "gauc": 0.7, "log_loss": 0.3, "ece": 0.01} for head in HEADS}
        report = {"seed": 4, "candidates_run_id": "c1", "features_version": specs.version(), "heads": heads}
        atomic_json(draft / REPORT, {**report, "slate_ndcg": {"millrace": 0.8}, "delta_versions": {"gold/examples": 2}})
    return root


@pytest.fixture
def built(workspace: Path, tmp_path: Path) -> Path:
    return build_bundle(workspace, latest_run(workspace, "ranker"), tmp_path / "bundles", DEFAULT_WEIGHTS, 1_000)


def test_a_bundle_holds_all_that_serving_needs_and_says_where_it_comes_from(built: Path) -> None:
    bundle = Bundle.load(built)
    assert bundle.bundle_id == built.name
    assert set(bundle.sources) == set(SOURCE_TYPES)
    assert len(bundle.item_table) == 30
    assert bundle.value_weights == DEFAULT_WEIGHTS
    assert bundle.manifest["delta_versions"] == {"silver/items": 1, "gold/examples": 2}
    assert bundle.manifest["seeds"] == {"ranker": 4, "candidates": 3}
    assert bundle.manifest["features_version"] == specs.version()
    scores = bundle.ranker.score(random_inputs(7))
    assert set(scores) == set(HEADS) and all(((p > 0) & (p < 1)).all() for p in scores.values())


def test_equal_parts_are_the_same_bundle(workspace: Path, built: Path) -> None:
    assert build_bundle(workspace, latest_run(workspace, "ranker"), built.parent, DEFAULT_WEIGHTS, 9_999) == built


def test_weights_change_without_retraining(built: Path) -> None:
    other = reweighted(built, {"click": 2.0}, 2_000)
    assert other != built
    assert Bundle.load(other).value_weights == {"click": 2.0}
    assert Bundle.load(other).manifest["reweighted_from"] == built.name
    with pytest.raises(ValueError, match="allowed heads"):
        reweighted(built, {"clicks": 2.0}, 2_000)


@pytest.mark.parametrize("name", [ITEMS, RANKER, LAYOUT, CALIBRATION, WEIGHTS, "sources/als.npz"])
def test_an_altered_or_missing_file_is_named(built: Path, name: str) -> None:
    content = bytearray((built / name).read_bytes())
    content[len(content) // 2] ^= 1
    (built / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is altered"):
        Bundle.load(built)
    (built / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.load(built)


def test_a_bundle_of_other_features_is_refused(built: Path) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    (built / MANIFEST).write_text(json.dumps({**manifest, "features_version": "00000000"}))
    with pytest.raises(BundleError, match=f"made for features 00000000, this code has {specs.version()}"):
        Bundle.load(built)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "lacks format"),
        ('{"format": 1}', "lacks bundle_id"),
        ('{"format": 99, "bundle_id": "b", "files": {}, "features_version": "x", "sources": []}', "got format 99"),
        ('{"format": 1, "bundle_id": "b", "files": {}, "features_version": "x", "sources": ["magic"]}', "magic"),
    ],
)
def test_a_broken_manifest_is_refused_in_a_sentence(built: Path, text: str, says: str) -> None:
    (built / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=says) as refusal:
        Bundle.load(built)
    assert "\n" not in str(refusal.value)


def test_the_directory_holds_the_manifest_and_its_files_and_nothing_else(built: Path) -> None:
    files = json.loads((built / MANIFEST).read_text())["files"]
    found = {file.relative_to(built).as_posix() for file in built.rglob("*") if file.is_file()}
    assert found == {*files, MANIFEST}
    (built / "sources" / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match=r"sources/notes\.txt is not in its manifest\.json"):
        Bundle.load(built)


def test_an_id_that_its_hashes_do_not_make_is_refused(built: Path) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    (built / MANIFEST).write_text(json.dumps({**manifest, "bundle_id": "bundle-000000000000"}))
    with pytest.raises(BundleError, match=f"says bundle-000000000000, its hashes make {built.name}"):
        Bundle.load(built)


def test_a_truncated_manifest_is_refused(built: Path) -> None:
    content = (built / MANIFEST).read_bytes()
    for length in (0, len(content) // 2, len(content) - 3):
        (built / MANIFEST).write_bytes(content[:length])
        with pytest.raises(BundleError, match="cannot be read"):
            Bundle.load(built)


def test_an_altered_bundle_is_not_reweighted(built: Path) -> None:
    (built / CALIBRATION).write_text("{}")
    with pytest.raises(BundleError, match="is altered"):
        reweighted(built, {"click": 2.0}, 2_000)


def test_a_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json there"):
        Bundle.load(tmp_path)


def test_a_manifest_that_leaves_a_part_out_is_refused(built: Path) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    del manifest["files"][RANKER]
    (built / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list ranker\.onnx"):
        Bundle.load(built)


def test_the_champion_is_a_file_that_names_an_existing_bundle(built: Path) -> None:
    bundles = built.parent
    assert champion_id(bundles) is None
    with pytest.raises(BundleError):
        set_champion(bundles, "nobody")
    set_champion(bundles, built.name)
    assert champion_id(bundles) == built.name
    assert read_champions(bundles).history[-1].replaced is None
    for text in ("?", "[]", '{"bundle_id": 3}', "{}"):
        (bundles / CHAMPION).write_text(text)
        with pytest.raises(BundleError, match="cannot be read"):
            champion_id(bundles)
    (bundles / CHAMPION).write_text(json.dumps({"bundle_id": built.name}))
    assert read_champions(bundles).before == (), "a file without a history is a champion without one"


def test_roll_backs_go_down_the_champions_one_by_one(built: Path) -> None:
    bundles = built.parent
    a, b, c = (reweighted(built, {"click": weight}, 2_000).name for weight in (2.0, 3.0, 4.0))
    for at_ms, (action, bundle_id, before) in enumerate(
        [
            ("promote", a, ()),
            ("promote", b, (a,)),
            ("weights", c, (a, b)),
            ("promote", c, (a, b)),
            ("rollback", b, (a,)),
            ("force", a, (a, b)),
            ("rollback", b, (a,)),
            ("rollback", a, ()),
            ("rollback", c, (a,)),
        ]
    ):
        set_champion(bundles, bundle_id, action, at_ms)  # type: ignore[arg-type]
        assert (champion_id(bundles), read_champions(bundles).before) == (bundle_id, before)
    history = read_champions(bundles).history
    assert [switch.at_ms for switch in history] == [0, 1, 2, 4, 5, 6, 7, 8], "the champion anew is no switch"
    assert history[-1].replaced == a


def test_an_unreadable_champion_is_named(built: Path) -> None:
    bundles = built.parent
    (bundles / CHAMPION).write_text("?")
    with pytest.raises(BundleError, match="cannot be read"):
        champion_id(bundles)


def test_a_ranker_of_other_features_makes_no_bundle(workspace: Path, tmp_path: Path) -> None:
    run = tmp_path / "r2"
    run.mkdir()
    report = json.loads((latest_run(workspace, "ranker") / REPORT).read_text())
    (run / REPORT).write_text(json.dumps({**report, "features_version": "00000000"}))
    with pytest.raises(BuildError, match="00000000"):
        build_bundle(workspace, run, tmp_path / "bundles", DEFAULT_WEIGHTS, 0)
    (run / REPORT).write_text(json.dumps({**report, "candidates_run_id": "gone"}))
    with pytest.raises(WorkspaceError, match="is gone"):
        build_bundle(workspace, run, tmp_path / "bundles", DEFAULT_WEIGHTS, 0)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "whole") as draft:
        (draft / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"run python -m models\.train_candidates first"):
        latest_run(tmp_path, CANDIDATES)


GOOD = BundleQuality(
    click_auc=0.75,
    click_gauc=0.7,
    click_log_loss=0.3,
    slate_ndcg=0.8,
    popularity_auc=0.6,
    calibration={head: HeadCalibration(ece=0.01, noise=0.005, examples=1_000) for head in HEADS},
)


def changed(**metrics: float) -> BundleQuality:
    return replace(GOOD, **metrics)  # type: ignore[arg-type]


def calibrated(head: str, ece: float, examples: int = 1_000) -> BundleQuality:
    return replace(
        GOOD, calibration={**GOOD.calibration, head: HeadCalibration(ece=ece, noise=0.005, examples=examples)}
    )


@pytest.mark.parametrize(
    ("quality", "champion", "missed"),
    [
        (GOOD, None, []),
        (GOOD, changed(click_auc=0.754, slate_ndcg=0.805), []),
        (GOOD, changed(click_auc=0.8), ["champion_auc"]),
        (GOOD, changed(slate_ndcg=0.9), ["champion_ndcg"]),
        (changed(click_auc=0.5), None, ["popularity"]),
        (calibrated("click", 0.2), None, ["calibration_click"]),
        (calibrated("hide", 0.056), None, ["calibration_hide"]),
        (calibrated("hide", 0.054), None, []),
        (calibrated("watch_fraction", 0.2), None, ["calibration_watch_fraction"]),
        (calibrated("watch_fraction", 0.2, examples=9), None, []),
        (calibrated("like", float("nan")), None, ["calibration_like"]),
        (changed(click_log_loss=float("nan")), None, ["finite"]),
        (changed(click_auc=float("nan")), None, ["finite", "popularity"]),
    ],
)
def test_each_gate_refuses_what_it_is_there_for(
    built: Path, quality: BundleQuality, champion: BundleQuality | None, missed: list[str]
) -> None:
    results = run_gates(Bundle.load(built), quality, champion, GateLimits(score_500_ms=10_000))
    assert [result.gate for result in results if not result.passed] == missed


def test_an_empty_source_is_refused(built: Path) -> None:
    bundle = Bundle.load(built)
    bundle.sources["popular"] = PopularSource(score_I=np.full(30, -np.inf, np.float32))
    gate = next(result for result in run_gates(bundle, GOOD, None) if result.gate == "sources")
    assert not gate.passed and "popular" in gate.detail


def test_the_latency_gate_says_by_how_much(built: Path) -> None:
    results = {gate.gate: gate for gate in run_gates(Bundle.load(built), GOOD, None, GateLimits(score_500_ms=1e-6))}
    assert not results["latency"].passed and "missed by" in results["latency"].detail
    assert results["features"].passed and results["scores"].detail.startswith("0 of 500")
    assert results["champion"].detail == "not compared: there is no champion"


def test_right_probabilities_have_the_calibration_error_of_chance_alone() -> None:
    """Judged by drawing labels: the mean ECE of many draws is what the formula says."""
    rng = np.random.default_rng(0)
    for examples, low, high in ((60, 0.0, 1.0), (2_000, 0.0, 0.1), (2_000, 0.3, 0.9)):
        probability_N = rng.uniform(low, high, examples).astype(np.float32)
        drawn = [
            head_calibration((rng.random(examples) < probability_N).astype(np.float32), probability_N).ece
            for _ in range(200)
        ]
        assert np.mean(drawn) == pytest.approx(calibration_noise(probability_N), rel=0.1)
    assert np.isnan(calibration_noise(np.empty(0, np.float32)))


def test_a_refusal_says_which_gate_and_by_how_much(built: Path) -> None:
    sentence = str(refusal_of("b", "a", run_gates(Bundle.load(built), GOOD, changed(click_auc=0.8))))
    assert "champion_auc: click AUC 0.7500, allowed: at least 0.8000 - 0.005, missed by 0.0450" in sentence


def test_value_is_the_weighted_sum_and_non_finite_candidates_sink() -> None:
    probabilities = {"click": np.array([0.5, np.nan], np.float32), "hide": np.array([0.25, 0.0], np.float32)}
    assert value(probabilities, {"click": 2.0, "hide": -1.0}).tolist() == [0.75, -np.inf]
