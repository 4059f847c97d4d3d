"""Serves the quality gates' Data Docs below Airflow's own address, to whoever is logged in to Airflow.

Airflow loads this in each of its processes, so what only the API server needs is imported at its first request.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from infra.airflow import DATA_DOCS_PREFIX, dag_settings

Message = MutableMapping[str, Any]


class DataDocsSites:
    """An ASGI application: the files below the stack's `data_docs`, for requests that carry an Airflow token."""

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Answers 401 without a valid token, 404 for a file that is not there."""
        from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
        from airflow.api_fastapi.core_api.security import resolve_user_from_token
        from starlette.exceptions import HTTPException
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse
        from starlette.staticfiles import StaticFiles

        request = Request(scope)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            await resolve_user_from_token(
                token if scheme.lower() == "bearer" else request.cookies.get(COOKIE_NAME_JWT_TOKEN)
            )
            files = StaticFiles(directory=dag_settings().data_docs_dir, html=True, check_dir=False)
            await files(scope, receive, send)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)


class DataDocsPlugin(AirflowPlugin):  # type: ignore[misc]  # Airflow is not in the environment that checks types
    """Tells Airflow of the application."""

    name = "millrace_data_docs"
    fastapi_apps: ClassVar = [{"name": "Data Docs", "app": DataDocsSites(), "url_prefix": DATA_DOCS_PREFIX}]
