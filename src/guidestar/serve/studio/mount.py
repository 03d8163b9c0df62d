"""Mount the studio in the server's application."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response

from ..protocol import AnyEngine
from ..web.errors import RefusedError
from ..web.guard import Message, Receive, Scope, Send
from ..web.service import Service

PATH = "/studio"

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; frame-ancestors 'self'"
)
"""What browsers may load for the page: nothing from elsewhere."""


def mount_studio(app: FastAPI, service: Service) -> FastAPI:
    """Add the page to an application, at `PATH`; the root leads there.

    Nothing of it comes from elsewhere: no fonts, scripts or telemetry.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio as gr
    from gradio.themes import Base

    from .gallery import GALLERY_PATH
    from .page import CSS, make_page
    from .session import Sessions

    sessions = Sessions(service)
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = Base(primary_hue="indigo", font=fonts[0], font_mono=fonts[1])

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        return Response(status_code=204)

    @app.get(f"{GALLERY_PATH}/{{key}}/{{number}}.png", include_in_schema=False)
    async def picture(key: str, number: int) -> Response:
        """Return a picture of a visitor's gallery, which never changes."""
        entry = sessions.picture(key, number)
        if entry is None:
            raise RefusedError(404, "not_found", "there is no such picture; it may be gone")
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(entry.png, media_type="image/png", headers=headers)

    mounted = gr.mount_gradio_app(
        app,
        make_page(service, sessions),
        path=PATH,
        theme=theme,
        css=CSS,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        max_file_size=service.limits.body,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
    )
    mounted.add_middleware(Confined)
    for engine in service.engines.values():
        threading.Thread(target=_measure, args=(engine,), daemon=True).start()
    return mounted


class Confined:
    """Forbids the page whatever is not the server's own.

    Args:
        app: behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self.app(scope, receive, send)
            return

        async def confining(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self.app(scope, receive, confining)


def _measure(engine: AnyEngine) -> None:
    """Sample pictures in few steps, so that plans can say how long a run takes."""
    try:
        request = engine.model.request(guidance="uncond", seeds=range(4), steps=4)
        engine.submit(request, timeout=60).result(60)
    except Exception:  # then plans say nothing of seconds
        return
