"""A server on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from PIL import Image

import guidestar as gs
from guidestar.serve.protocol import AnyEngine
from guidestar.serve.web import Keys, Limits, Service, make_app
from helpers.served import toy_model

PICTURE = (1, 8, 8)


class Served:
    """A server under test: its service and its address."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)

    @property
    def model(self) -> gs.Model:
        return next(iter(self.service.engines.values())).model


@contextmanager
def serving(
    models: dict[str, Any] | None = None,
    limits: Limits | None = None,
    keys: Keys | None = None,
    hosts: set[str] | None = None,
    studio: bool = False,
    start: Callable[[gs.Model, Limits], AnyEngine] | None = None,
) -> Iterator[Served]:
    models = models or {"toy": toy_model(shape=PICTURE)}
    service = Service(models, limits or Limits(seconds=60), start)
    app = make_app(service, keys=keys, hosts=hosts, studio=studio)
    config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield Served(service, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def opened(data: bytes | str) -> Image.Image:
    """Open a picture that was sent, in base64 or as it is."""
    return Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def pixels(data: Any) -> list[int]:
    image = data if isinstance(data, Image.Image) else opened(data)
    return list(image.tobytes())


def picture(size: tuple[int, int] = (8, 8), shade: int = 128) -> str:
    """Return a picture in base64."""
    made = io.BytesIO()
    image = Image.linear_gradient("L").resize(size).point(lambda v: (v + shade) // 2)
    image.save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()
