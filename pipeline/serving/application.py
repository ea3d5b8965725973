"""The ASGI application: addresses to answers, errors to statuses, each counted and each naming its release."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Served

from ..errors import (
    CodebooksError,
    ConfigError,
    InputError,
    PhotoRefused,
    RequestRefused,
    Unavailable,
    UnknownItem,
)
from ..reader import Release
from .admission import Door
from .answers import Answer, json_answer
from .asked import Asked, check_expected, check_token, checked_query
from .config import ServeConfig
from .counting import CONTENT_TYPE, Counts
from .current import Current
from .openapi import QUICK, openapi_document
from .page import PAGE, PAGE_HEADERS
from .routes import ROUTES, Route

log = logging.getLogger("uvicorn.error")

_ELSEWHERE = "none"  # the label of requests that no route takes
_TOO_LARGE = ("too_many_pixels", "too_many_bytes")
Handler = Callable[[Request], Awaitable[Answer]]


class Service:
    """What the handlers share: the release in force, the door to the threads, the counts."""

    def __init__(self, config: ServeConfig, counts_folder: Path | None = None) -> None:
        self.config = config
        self.counts = Counts([*(route.path for route in ROUTES), *QUICK, _ELSEWHERE], counts_folder)
        self.current = Current(config, self.counts)
        self.second = Current(config, self.counts, beside=True) if config.beside is not None else None
        self.door = Door(config, self.counts)
        self._document = json.dumps(openapi_document(config)).encode()

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Follow the channel while the application runs.

        The first look is waited for, so that a process which takes another's place is not asked before it can answer.
        """
        followed = [each for each in (self.current, self.second) if each is not None]
        await asyncio.gather(*(each.look() for each in followed))
        keeping = [asyncio.create_task(each.keep()) for each in followed]
        yield
        for task, each in zip(keeping, followed, strict=True):
            task.cancel()
            each.close()
        self.door.close()

    async def quick(self, request: Request, path: str) -> Answer:
        """Answer what needs neither a thread nor a release."""
        served = self.current.served
        release = None if served is None else served.release
        if path == "/":
            return Answer(PAGE, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)
        if path == "/openapi.json":
            return Answer(self._document)
        if path == "/metrics":
            check_token(request, self.config)
            self.current.count_recall()
            return Answer(self.counts.text().encode(), media_type=CONTENT_TYPE)
        if path == "/readyz":
            if served is None:
                raise self._not_ready()
            ready = {"status": "ready", "items": len(served.release), "photos": served.photos}
            told = {"problem": self.current.problem or None, "beside": self._beside()}
            return json_answer({**ready, **told}, release)
        return json_answer({"status": "ok"}, release)

    async def worked(self, request: Request, route: Route) -> Answer:
        """Answer on a search thread, by the release that is in force now."""
        check_token(request, self.config)
        served = self.current.served
        if served is None:
            raise self._not_ready()
        query = checked_query(request, route.parameters)
        check_expected(request, query, served.release)
        length = request.headers.get("content-length", "")
        if length.isdecimal():
            self.door.check_length(int(length))
        with self.door.enter() as place:
            body = await self.door.body(request.stream(), place) if route.body is not None else b""
            asked = Asked(
                release=served.release,
                photos=served.photos,
                config=self.config,
                item_id=request.path_params.get("item_id", ""),
                query=query,
                media_type=request.headers.get("content-type", "").partition(";")[0].strip().lower(),
                body=body,
                second=self.second,
            )
            return await self.door.run(partial(route.work, asked), place)

    async def respond(self, request: Request, label: str, handler: Handler) -> Response:
        """Return a handler's answer or its error as a response, counted, with the ids of the release in force."""
        began = perf_counter()
        served = self.current.served
        release = None if served is None else served.release
        try:
            answer = await handler(request)
        except ClientDisconnect:
            self.counts.answered(label, 499, perf_counter() - began)
            return Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001  whatever it is becomes an answer, and goes to the log
            answer = error_answer(error, release)
        headers = dict(answer.headers)
        if release is not None:
            headers |= {"X-Release-Id": release.release_id, "X-Model-Id": release.model_id}
        self.counts.answered(label, answer.status, perf_counter() - began)
        return Response(answer.body, answer.status, headers, answer.media_type)

    async def refused(self, request: Request, error: Exception) -> Response:
        """Return what Starlette itself refuses (404, 405) as every other error."""

        async def handler(_request: Request) -> Answer:
            raise error

        return await self.respond(request, _ELSEWHERE, handler)

    def _beside(self) -> dict[str, str | None] | None:
        """Return what `/readyz` says of the second release, None where the service has none."""
        if self.second is None:
            return None
        served = self.second.served
        return {
            "release_id": None if served is None else served.release.release_id,
            "model_id": None if served is None else served.release.model_id,
            "problem": self.second.problem or None,
        }

    def _not_ready(self) -> RequestRefused:
        return RequestRefused(503, f"no release is open yet: {self.current.problem}")


def application(config: ServeConfig, counts_folder: Path | None = None) -> Starlette:
    """Return the application; counts_folder: where all processes of a service count, None for one alone.

    It begins to follow the channel when its lifespan begins, so its host has to run that (uvicorn does).
    """
    service = Service(config, counts_folder)

    def endpoint(label: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await service.respond(request, label, handler)

        return answer

    routes = [
        Served(route.pattern, endpoint(route.path, partial(service.worked, route=route)), methods=[route.method])
        for route in ROUTES
    ]
    routes += [Served(path, endpoint(path, partial(service.quick, path=path)), methods=["GET"]) for path in QUICK]
    app = Starlette(routes=routes, lifespan=service.lifespan, exception_handlers={HTTPException: service.refused})
    app.router.redirect_slashes = False  # a key may end with a slash
    app.state.service = service
    return app


def error_answer(error: Exception, release: Release | None) -> Answer:
    """Return an error as JSON that says what it was, the value and the remedy."""
    status, text = _status(error), str(error)
    if isinstance(error, HTTPException):
        text = f"{error.detail} at this address; /openapi.json lists the addresses and their methods"
    if status == 500:
        log.error("a request failed", exc_info=error)
        if not isinstance(error, CodebooksError):
            text = "an unexpected error; the service's log has it"
    answer = json_answer({"error": text, "status": status}, release, status)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    return Answer(answer.body, status, headers=headers)


def _status(error: Exception) -> int:
    if isinstance(error, RequestRefused):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, UnknownItem):
        return 404
    if isinstance(error, PhotoRefused):
        return 413 if error.reason in _TOO_LARGE else 422
    if isinstance(error, Unavailable | MemoryError):
        return 503
    return 422 if isinstance(error, ConfigError | InputError) else 500
