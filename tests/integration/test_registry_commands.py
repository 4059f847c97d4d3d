"""`millrace models` and `millrace weights` on real bundles and a real MLflow registry, called in this process."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import infra.cli
from infra.doctor import Verdict, _champion
from infra.settings import load_settings
from models.bundle import CHAMPION, MANIFEST, Bundle, champion_id
from models.bundle_writer import build_bundle
from models.champions import promotion_lock, read_champions, set_champion
from models.monitor import Monitor, watch
from models.monitor_limits import MonitorLimits
from models.promote import promote
from models.promotion import ensure_registered
from models.registry import Registry
from models.value import DEFAULT_WEIGHTS
from models.workspace import RANKER, TEST_EXAMPLES, latest_run
from tests.served_world import NOW_MS, PROMOTED_MS, World
from tests.trained_workspace import small_lake, write_runs

Millrace = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack's folder: `first` is champion, version 1; `worse` 2, `better` 3; `raw` lies there alone."""
    var = tmp_path_factory.mktemp("stack") / "var"
    lake = small_lake()
    write_runs(var / "workspace", lake, "first", 1.0)
    report = promote(var / "workspace", var / "bundles", f"sqlite:///{var}/mlflow.db", None, 1_000)
    assert report["promoted"], report["gates"]
    names = {"first": report["bundle_id"]}
    for name, sharpness, calibrated in (("worse", 0.05, True), ("raw", 1.0, False), ("better", 1.3, True)):
        run = write_runs(var / "workspace", lake, name, sharpness, calibrated)
        bundle = build_bundle(var / "workspace", run, var / "bundles", DEFAULT_WEIGHTS, 2_000)
        names[name] = bundle.name
        if name != "raw":
            ensure_registered(registry_of(var), var / "workspace", bundle)
    (var / "names.json").write_text(json.dumps(names))
    return var


@pytest.fixture
def var(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "var"
    shutil.copytree(template, copy)
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(copy))
    return copy


@pytest.fixture
def names(var: Path) -> dict[str, str]:
    return dict(json.loads((var / "names.json").read_text()))


@pytest.fixture
def millrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Millrace:
    """Runs the command as its entry point does: exit code, stdout, stderr."""
    monkeypatch.setattr(infra.cli.signal, "signal", lambda *_: None)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["millrace", *arguments])
        with pytest.raises(SystemExit) as ended:
            infra.cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def registry_of(var: Path) -> Registry:
    return Registry(f"sqlite:///{var}/mlflow.db")


def tags_of(var: Path, bundle_id: str) -> dict[str, str]:
    return next(version.tags for version in registry_of(var).versions() if version.bundle_id == bundle_id)


def served_and_alias(var: Path) -> tuple[str | None, str | None]:
    return champion_id(var / "bundles"), registry_of(var).bundle_of("champion")


def test_list_shows_every_bundle_and_what_is_gone(millrace: Millrace, var: Path, names: dict[str, str]) -> None:
    code, out, _ = millrace("models", "list")
    lines = {line.split()[1]: line for line in out.splitlines()[1:]}
    assert code == 0 and set(lines) == set(names.values())
    assert "champion" in lines[names["first"]] and "passed" in lines[names["first"]]
    assert "0.7076" in lines[names["first"]] and "1970-01-01 00:00:01" in lines[names["first"]]
    assert "not judged" in lines[names["better"]] and "not registered" in lines[names["raw"]]
    shutil.rmtree(var / "bundles" / names["first"])
    code, out, _ = millrace("models", "list", "--json")
    (first,) = [one for one in json.loads(out)["bundles"] if one["bundle_id"] == names["first"]]
    assert (first["present"], first["click_auc"], first["made_at_ms"]) == (
        False,
        pytest.approx(0.7076, abs=1e-4),
        1_000,
    )


def test_show_takes_ids_prefixes_versions_and_aliases(millrace: Millrace, names: dict[str, str]) -> None:
    first = names["first"]
    for which in ("champion", "1", first, first[:13], first.removeprefix("bundle-")[:6]):
        code, out, err = millrace("models", "show", which)
        assert code == 0, err
        for part in (first, "ranker-first", "seeds: candidates", "silver/items", "ranker.onnx", "configuration"):
            assert part in out
        assert "calibration_click" in out and "watch_fraction" in out


REFUSED = (
    ("models show challenger", "there is no challenger yet"),
    ("models show bundle-", "begins more than one id"),
    ("models show 99", "no bundle '99'"),
    ("models promote 1 --force", "--force and --reason TEXT belong together"),
    ("models promote 1 --reason why", "--force and --reason TEXT belong together"),
    ("models promote nobody", "no bundle 'nobody'"),
    ("models rollback", "no champion came before"),
    ("models rollback 1", "is the champion already"),
    ("models promote 1 --limits /nowhere.json", "gate limits /nowhere.json cannot be read"),
    ("models promote 1 --examples /nowhere.parquet", "cannot be read"),
    ("weights set likes=2", "allowed heads: click, completion, like"),
    ("weights set like=nan", "like: got 'nan'; allowed: a finite number"),
    ("weights set like=-inf", "like: got '-inf'; allowed: a finite number"),
    ("weights set like=much", "like: got 'much'; allowed: a finite number"),
    ("weights set like", "allowed: HEAD=WEIGHT"),
    ("weights set like=1 like=2", "each head once"),
    ("weights set like=0.5", "has these weights already"),
    (f"weights set {' '.join(f'{head}=0' for head in DEFAULT_WEIGHTS)}", "no head would have a positive weight"),
)


def test_what_cannot_be_done_ends_in_one_sentence_and_changes_nothing(millrace: Millrace, var: Path) -> None:
    bundles = var / "bundles"
    before = sorted(bundles.iterdir()), (bundles / CHAMPION).read_bytes()
    for arguments, says in REFUSED:
        code, _, err = millrace(*arguments.split())
        assert (code, err.count("\n")) == (1, 1) and says in err, (arguments, err)
        assert (sorted(bundles.iterdir()), (bundles / CHAMPION).read_bytes()) == before, arguments


def test_promote_switches_and_rollback_goes_back_step_by_step(
    millrace: Millrace, var: Path, names: dict[str, str]
) -> None:
    code, out, err = millrace("models", "promote", names["better"][:15])
    assert code == 0, err
    assert served_and_alias(var) == (names["better"], names["better"])
    for gate in ("features", "sources", "latency", "calibration_hide", "champion_auc", "champion_ndcg"):
        assert gate in out
    assert "of 500" in out and tags_of(var, names["better"])["gates"] == "passed"
    code, out, _ = millrace("models", "rollback")
    assert code == 0 and f"{names['first']} is the champion again, instead of {names['better']}" in out
    assert served_and_alias(var) == (names["first"], names["first"])
    assert millrace("models", "rollback")[0] == 1, "nothing came before the first"
    assert millrace("models", "rollback", names["better"])[0] == 0
    history = [(switch.bundle_id, switch.action) for switch in read_champions(var / "bundles").history]
    first, better = names["first"], names["better"]
    assert history == [(first, "promote"), (better, "promote"), (first, "rollback"), (better, "rollback")]


@pytest.mark.parametrize("how", ["gone", "altered", "never"])
def test_rollback_refuses_what_cannot_be_served(millrace: Millrace, var: Path, names: dict[str, str], how: str) -> None:
    millrace("models", "promote", names["better"])
    first, target = var / "bundles" / names["first"], ()
    if how == "gone":
        shutil.rmtree(first)
    elif how == "altered":
        (first / "weights.json").write_text("{}")
    else:
        target = (names["worse"],)
    code, _, err = millrace("models", "rollback", *target)
    says = {"gone": "is gone from", "altered": "weights.json is altered", "never": "was never champion"}[how]
    assert code == 1 and says in err
    assert served_and_alias(var) == (names["better"], names["better"])


def test_a_worse_bundle_is_refused_unless_somebody_overrides_the_gate(
    millrace: Millrace, var: Path, names: dict[str, str]
) -> None:
    code, out, err = millrace("models", "promote", names["worse"])
    assert code == 1 and "champion_auc: click AUC" in err and "missed by" in err and "refused" in out
    assert served_and_alias(var) == (names["first"], names["first"])
    assert registry_of(var).bundle_of("challenger") == names["worse"]
    code, out, err = millrace("models", "promote", "challenger", "--force", "--reason", "the log was wrong")
    assert code == 0 and "overridden: " in out and "champion_auc" in out
    assert served_and_alias(var) == (names["worse"], names["worse"])
    tags = tags_of(var, names["worse"])
    (story,) = [told for name, told in tags.items() if name.startswith("override")]
    assert story.endswith(": the log was wrong") and "overrode" in story and tags["gates"].startswith("overridden: ")
    assert registry_of(var).bundle_of("challenger") is None
    assert read_champions(var / "bundles").history[-1].action == "force"


def test_every_head_must_be_calibrated_and_limits_come_from_a_file(
    millrace: Millrace, names: dict[str, str], tmp_path: Path
) -> None:
    code, _, err = millrace("models", "promote", names["raw"])
    assert code == 1 and "calibration_click" in err and "calibration_watch_fraction" in err
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"max_ece": {"click": 1, "like": 1, "watch_fraction": 1}, "score_500_ms": 1e-4}))
    code, _, err = millrace("models", "promote", names["raw"], "--limits", str(limits))
    assert code == 1 and "gates missed: latency: median CPU ms to score 500" in err and "calibration" not in err
    limits.write_text(json.dumps({"max_ece": {"clicks": 1}}))
    code, _, err = millrace("models", "promote", names["raw"], "--limits", str(limits))
    assert code == 1 and "clicks" in err and "allowed" in err


def test_other_features_are_refused_by_their_gate_whatever_the_force(
    millrace: Millrace, var: Path, names: dict[str, str]
) -> None:
    file = var / "bundles" / names["better"] / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "features_version": "00000000"}))
    code, _, err = millrace("models", "promote", names["better"], "--force", "--reason", "now")
    assert code == 1 and "gates missed: features: made for features 00000000" in err
    assert "Nobody can override features" in err
    assert served_and_alias(var) == (names["first"], names["first"])


def test_without_examples_promotion_is_refused_and_diff_says_so(
    millrace: Millrace, var: Path, names: dict[str, str]
) -> None:
    (latest_run(var / "workspace", RANKER) / TEST_EXAMPLES).unlink()
    code, _, err = millrace("models", "promote", names["better"])
    assert code == 1 and "gates missed: examples: there are no test examples" in err
    code, out, _ = millrace("models", "diff", "champion", names["better"])
    assert code == 0 and "not put to the same examples" in out


def test_diff_names_what_differs_and_by_how_much(millrace: Millrace, names: dict[str, str]) -> None:
    code, out, err = millrace("models", "diff", names["first"], names["worse"], "--json")
    assert code == 0, err
    told = json.loads(out)
    found = {(one["section"], one["name"]) for one in told["differences"]}
    assert {("parts", "ranker.onnx"), ("runs", "ranker"), ("configuration", "ranker sharpness")} <= found
    assert not {section for section, _ in found} & {"weights", "seeds", "features", "delta versions"}
    (auc,) = [one for one in told["metrics"] if one["metric"] == "click AUC"]
    change = auc["change"]
    assert change["value"] == pytest.approx(auc["b"] - auc["a"])
    assert change["low"] < change["value"] < change["high"] < 0, "the worse one is told apart"
    code, out, _ = millrace("models", "diff", "1", "champion")
    assert code == 0 and "nothing differs" in out and "[+0.0000, +0.0000]" in out


def test_weights_are_shown_and_set_without_retraining(millrace: Millrace, var: Path, names: dict[str, str]) -> None:
    code, out, _ = millrace("weights")
    assert code == 0 and names["first"] in out and out.split("like")[1].split()[0] == "0.5"
    before = sorted(path.name for path in (var / "bundles").iterdir())
    code, out, _ = millrace("weights", "set", "like=2", "hide=-5", "--dry-run")
    assert code == 0 and "nothing was changed" in out and "logged slates" in out
    assert sorted(path.name for path in (var / "bundles").iterdir()) == before
    code, out, err = millrace("weights", "set", "like=2", "hide=-5")
    assert code == 0, err
    champion, alias = served_and_alias(var)
    assert champion == alias and champion not in names.values()
    bundle = Bundle.load(var / "bundles" / str(champion))
    assert bundle.value_weights == {**DEFAULT_WEIGHTS, "like": 2.0, "hide": -5.0}
    assert tags_of(var, str(champion))["origin"] == f"weights of {names['first']}"
    code, out, _ = millrace("models", "diff", "1", "champion")
    told = {" ".join(line.split()[:2]) for line in out.splitlines()}
    assert {"weights like", "weights hide", "parts weights.json"} <= told and "parts ranker.onnx" not in told
    report = promote(var / "workspace", var / "bundles", f"sqlite:///{var}/mlflow.db", None, 9_000)
    assert report["promoted"]
    weights = Bundle.load(var / "bundles" / report["bundle_id"]).value_weights
    assert weights == bundle.value_weights, "retraining keeps the weights that were set"


@pytest.mark.parametrize("mended_by", ["promote", "rollback"])
def test_a_kill_between_champion_json_and_the_alias_is_told_and_mended(
    millrace: Millrace, var: Path, names: dict[str, str], monkeypatch: pytest.MonkeyPatch, mended_by: str
) -> None:
    class KilledError(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "set_alias", kill)
        with pytest.raises(KilledError):
            millrace("models", "promote", names["better"])
    assert served_and_alias(var) == (names["better"], names["first"]), "killed between the two writes"
    _, out, _ = millrace("models", "list")
    sentence = f"champion.json names {names['better']}, MLflow's alias {names['first']}"
    assert f"the registry disagrees: {sentence}" in out
    (finding,) = _champion(load_settings())
    assert finding.verdict is Verdict.WARNING and sentence in finding.found
    if mended_by == "promote":
        assert millrace("models", "promote", names["worse"])[0] == 1, "mended by a promotion that is refused, too"
        assert served_and_alias(var) == (names["better"], names["better"])
    else:
        assert millrace("models", "rollback")[0] == 0
        assert served_and_alias(var) == (names["first"], names["first"])
    assert "disagrees" not in millrace("models", "list")[1]
    (finding,) = _champion(load_settings())
    assert finding.verdict is Verdict.OK


def test_two_promotions_at_once_are_refused_and_an_unreadable_champion_is_named(
    millrace: Millrace, var: Path, names: dict[str, str]
) -> None:
    with promotion_lock(var / "bundles"):
        code, _, err = millrace("models", "promote", names["better"])
    assert code == 1 and "another promotion or roll-back works in" in err
    (var / "bundles" / CHAMPION).write_text("?")
    for command in (("list",), ("promote", names["better"]), ("rollback",)):
        code, _, err = millrace("models", *command)
        assert code == 1 and "champion.json cannot be read" in err and "Traceback" not in err


def test_before_anything_is_trained_every_command_says_so(
    millrace: Millrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(tmp_path / "empty"))
    for command in (("models", "list"), ("models", "show"), ("models", "rollback"), ("models", "promote", "1")):
        code, _, err = millrace(*command)
        assert (code, err.count("\n")) == (1, 1) and "no bundles in" in err
    for command in (("weights",), ("weights", "set", "like=2")):
        code, _, err = millrace(*command)
        assert (code, err.count("\n")) == (1, 1) and "there is no champion" in err
    assert not (tmp_path / "empty").exists(), "something was written"


def test_a_promoted_bundle_that_breaks_a_guardrail_is_rolled_back_once(var: Path, names: dict[str, str]) -> None:
    first, better = names["first"], names["better"]
    set_champion(var / "bundles", better, at_ms=PROMOTED_MS)
    world = World(old=first, new=better)
    world.click_rate[better] = 0.2
    monitor = Monitor(
        lake=world.write(var / "lake"),
        bundles_dir=var / "bundles",
        workspace=var / "workspace",
        tracking_uri=f"sqlite:///{var}/mlflow.db",
        now_ms=NOW_MS,
        limits=MonitorLimits(min_rows=200),
    )
    dry = watch(replace(monitor, dry_run=True))["rollback"]
    assert (dry["would_go_to"], dry["went_to"], champion_id(var / "bundles")) == (first, None, better)
    report = watch(monitor)
    assert [alert["subject"] for alert in report["alerts"]] == ["click_rate"]
    assert report["rollback"]["went_to"] == first
    assert served_and_alias(var) == (first, first)
    last = read_champions(var / "bundles").history[-1]
    assert (last.action, last.replaced) == ("rollback", better)
    assert last.reason.startswith("monitor: click_rate went from 0.2886 to 0.2193")
    assert tags_of(var, better)["rolled_back_because"] == last.reason
    again = watch(monitor)
    assert (again["alerts"], again["rollback"]["went_to"], champion_id(var / "bundles")) == ([], None, first)
