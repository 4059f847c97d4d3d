"""Settings: defaults, two stacks side by side, refusals in one sentence."""

from pathlib import Path

import pytest

from infra.settings import PREFIX, ROOT, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)


def test_the_defaults_lie_below_var_and_share_no_port() -> None:
    settings = load_settings()
    assert settings.var_dir == ROOT / "var" / "stack"
    assert settings.lake_dir == settings.var_dir / "lake"
    assert len(set(settings.ports.values())) == len(settings.ports)


def test_a_name_and_a_port_base_make_a_second_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_settings()
    monkeypatch.setenv("MILLRACE_STACK", "second")
    monkeypatch.setenv("MILLRACE_PORT_BASE", "21000")
    second = load_settings()
    assert second.var_dir == ROOT / "var" / "second"
    assert second.online_store_url.startswith(str(second.var_dir))
    assert second.mlflow_uri.startswith(f"sqlite:///{second.var_dir}")
    assert not set(first.ports.values()) & set(second.ports.values())
    assert {port - 2_000 for port in second.ports.values()} == set(first.ports.values())


def test_another_process_loads_equal_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(stack="other", kafka_port=20_001, ingest_schedule="*/5 * * * *", var_dir=Path("/tmp/v"))
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STACK", "Two Words", "MILLRACE_STACK"),
        ("PORT_BASE", "many", "MILLRACE_PORT_BASE"),
        ("PORT_BASE", "80", "greater than or equal to 1024 (got '80')"),
        ("KAFKA_PORT", "70000", "MILLRACE_KAFKA_PORT"),
        ("KAFKA_PORT", "19093", "MILLRACE_KAFKA_CONTROLLER_PORT and MILLRACE_KAFKA_PORT are both 19093"),
        ("FLINK_HEAP_MB", "1", "MILLRACE_FLINK_HEAP_MB"),
        ("SERVING_TLS_CERT", "a.pem", "MILLRACE_SERVING_TLS_CERT is given without MILLRACE_SERVING_TLS_KEY; give both"),
        ("SERVING_CLIENT_CA", "a.pem", "without MILLRACE_SERVING_CLIENT_CERT"),
        ("KAFKA_PROT", "1", "unknown setting MILLRACE_KAFKA_PROT; allowed: MILLRACE_AIRFLOW_NICENESS"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
