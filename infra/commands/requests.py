"""`millrace why` and `millrace replay-request`: past requests, from the ranking service's request log."""

from typing import TYPE_CHECKING, Annotated

import typer

from infra.commands import CommandError, say
from infra.settings import load_settings

if TYPE_CHECKING:
    from features.slates import SlateRecord
    from serving.past_request import PastRequest
    from serving.request_log import RequestLogReader


def why(
    user: Annotated[str, typer.Argument(metavar="USER", help="user_id.")],
    item: Annotated[str, typer.Argument(metavar="ITEM", help="item_id.")],
    request: Annotated[str, typer.Option(help="Its id; default: the newest that showed the item, or the newest.")] = "",
) -> None:
    """Say why a user was shown an item, or which stage dropped it and what it would have taken."""
    from infra.request_views import why_view

    log = _log()
    if request:
        record = _found(log, request)
        if record.user_id != user:
            raise CommandError(f"request {request} was of another user than {user}; give the user who asked.")
    else:
        newest = log.newest_showing(user, item) or log.newest(user)
        if newest is None:
            raise CommandError(f"the log of the last day has no request of {user!r}; ask for a slate first.")
        record = newest
    say(why_view(_put_together(record), item))


def replay_request(
    request: Annotated[str, typer.Argument(metavar="ID", help="Slate.request_id.")],
) -> None:
    """Run a logged request again: features, scores and slate, bit for bit; exit 1 when anything differs."""
    from infra.request_views import replay_view
    from serving.replay import Verdict, replay

    past = _put_together(_found(_log(), request))
    checks = replay(past)
    say(replay_view(past, checks))
    if not past.evidence.full_features and past.logged_inputs() is not None:
        say("of this request only the returned items' features were logged: of the others, scores are taken as logged")
    if differing := [check.part for check in checks if check.verdict is Verdict.DIFFERENT]:
        raise CommandError(
            f"request {request} comes out otherwise in {', '.join(differing)}; compare library versions and code with "
            "those of the service."
        )


def _log() -> "RequestLogReader":
    from serving.request_log import RequestLogReader

    return RequestLogReader(load_settings().request_log_dir)


def _found(log: "RequestLogReader", request_id: str) -> "SlateRecord":
    record = log.find(request_id)
    if record is None:
        raise CommandError(f"the log of the last day has no request {request_id!r}; give the request_id of a slate.")
    return record


def _put_together(record: "SlateRecord") -> "PastRequest":
    from models.bundle import loaded
    from serving.past_request import past_request

    return past_request(record, loaded(load_settings().bundles_dir, record.bundle_id))
