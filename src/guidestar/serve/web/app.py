"""The application: all routes, and errors in one form."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ... import __version__
from ..errors import EngineError
from . import a1111_api, openai_api, samples_api
from .errors import RefusedError, invalid, refused
from .guard import Guard
from .keys import Keys
from .service import Service


def make_app(
    service: Service,
    *,
    keys: Keys | None = None,
    hosts: set[str] | None = None,
    studio: bool = False,
) -> Guard:
    """Make the application of a service.

    Args:
        service: the models and their engines.
        keys: that are accepted; none for anyone.
        hosts: names by which the server may be called; None for any.
        studio: whether to add the page in the browser, under /studio.

    Returns:
        An ASGI application.
    """
    app = FastAPI(title="guidestar", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    for module in (samples_api, openai_api, a1111_api):
        app.include_router(module.router)
    _add_probes(app, service)
    _add_handlers(app)
    if studio:
        from ..studio.mount import mount_studio

        mount_studio(app, service)
        service.studio = True
    return Guard(
        app,
        keys=keys or Keys(),
        limits=service.limits,
        metrics=service.metrics,
        hosts=hosts,
    )


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> PlainTextResponse:
        """Say whether the server lives."""
        return PlainTextResponse("ok")

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> PlainTextResponse:
        """Say whether the server takes requests."""
        if service.draining:
            raise RefusedError(503, "closed", "the server is going down")
        idle = [name for name, engine in service.engines.items() if not engine.is_ready]
        if idle:
            text = f"the engine of {', '.join(idle)} has stopped, or has no replica now"
            raise RefusedError(503, "closed", text)
        return PlainTextResponse("ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return the server's figures."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return _send(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return _send(RefusedError(error.status_code, "invalid_request_error", str(error.detail)))

    async def plainly(request: Request, error: Exception) -> JSONResponse:
        return _send(refused(error))

    for kind in (RefusedError, EngineError, ValueError, ArithmeticError, MemoryError, Exception):
        app.add_exception_handler(kind, plainly)


def _send(error: RefusedError) -> JSONResponse:
    return JSONResponse(error.body, error.status, dict(error.headers))
