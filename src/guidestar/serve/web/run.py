"""Run the server: on a socket, until it is stopped."""

from __future__ import annotations

import ipaddress
import logging
import signal
import sys
import threading
import time
from types import FrameType

import uvicorn

from .guard import Guard
from .service import Service

_log = logging.getLogger("guidestar.serve")

FETCH = 2.0
"""Seconds after the last request is over in which clients can fetch pictures."""


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """A server that, when it is stopped, first finishes what is under way."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self.service, self.grace = service, grace
        self._stopping: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping is not None and sig == signal.SIGINT:  # the second signal
            super().handle_exit(sig, frame)
            return
        if self._stopping is None:
            self.service.draining = True
            self._stopping = threading.Thread(target=self._drain, daemon=True)
            self._stopping.start()

    def _drain(self) -> None:
        started = time.monotonic()
        _log.warning("stopping: no more requests are taken, %.0f s for the others", self.grace)
        self.service.close(self.grace)
        time.sleep(max(0.0, min(FETCH, self.grace - (time.monotonic() - started))))
        self.should_exit = True


def run_server(app: Guard, service: Service, *, host: str, port: int, grace: float = 30.0) -> int:
    """Serve an application until SIGTERM or SIGINT, and return the process's exit code.

    Args:
        app: of the service.
        service: that is stopped with it.
        host: the address to listen at.
        port: of it; 0 for any that is free.
        grace: seconds that requests under way have, once it is stopped.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config, service, grace)
    announcer = threading.Thread(target=_announce, args=(server, service), daemon=True)
    announcer.start()
    try:
        server.run()
    except SystemExit as error:  # the address is taken
        service.close()
        raise OSError(f"cannot listen at {host}:{port}; is it taken?") from error
    except KeyboardInterrupt:
        pass
    service.close()
    return 0


def _announce(server: uvicorn.Server, service: Service) -> None:
    """Say where it listens, once it does."""
    while not server.started and not server.should_exit:
        time.sleep(0.02)
    for listening in server.servers:
        for socket in listening.sockets:
            host, port = socket.getsockname()[:2]
            names = ", ".join(service.engines)
            page = "/studio" if service.studio else ""
            print(f"serving {names} at http://{host}:{port}{page}", file=sys.stderr, flush=True)
