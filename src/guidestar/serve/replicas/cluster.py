"""Replicas on Ray Serve (extra ``ray``): started, kept at their number, and reached."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..loading import load_models
from .engine import ReplicaLostError, ReplicatedEngine
from .replica import Replica
from .reports import ReplicaReport
from .scale import ReplicaScale

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from ...model.model import Model
    from ...model.request import Request
    from ..web.limits import Limits

logger = logging.getLogger("guidestar.serve")

COUNT_SECONDS = 1.0
"""Seconds between two counts of the replicas."""

STARTS = 3
"""Times that Ray is started: on a busy machine its processes can be too slow for its patience."""

DEPLOYMENT = "replica"
ADD_AFTER, REMOVE_AFTER = 5.0, 60.0
"""Seconds for which there must be too many requests before a replica is added, or too few before
one is removed.
"""

RUNNING = "RUNNING"
"""The state of a replica that takes requests, as Ray Serve calls it."""


class Cluster:
    """Replicas of a server on Ray Serve.

    The server keeps the requests and answers clients; replicas only sample. Ray is started on this
    machine, or the one at ``address`` is joined.

    Args:
        folders: of the models, by the names under which they are served.
        limits: of the server.
        scale: how many replicas there are.
        device: where their networks are; on cuda each replica has a GPU.
        trust: as of `load`.
        address: of a running Ray cluster; None starts one here.

    Raises:
        RuntimeError: the replicas did not start.
    """

    def __init__(
        self,
        folders: Mapping[str, str],
        limits: Limits,
        *,
        scale: ReplicaScale,
        device: str = "cpu",
        trust: bool = False,
        address: str | None = None,
    ) -> None:
        self._limits = limits
        self._name = f"guidestar-{secrets.token_hex(4)}"
        _connect(address, scale.most)
        load = partial(load_models, dict(folders), device=device, trust=trust)
        self._handle = self._deploy(load, scale, device)
        self._running, self._closed = 0, threading.Event()
        self._loop = asyncio.new_event_loop()
        for work in (self._run, self._watch):
            threading.Thread(target=work, name="guidestar-cluster", daemon=True).start()

    def engine(self, model: Model, limits: Limits) -> ReplicatedEngine:
        """Return the engine of a model, by its name, that has the replicas sample."""
        return ReplicatedEngine(
            model,
            partial(_sample, self._handle, model.name),
            self._loop,
            max_rows=limits.rows,
            max_queue=limits.queue,
            max_samples=limits.samples,
            max_evaluations=limits.evaluations,
            replicas=lambda: self._running,
        )

    def close(self) -> None:
        """End the replicas, and Ray if it was started for them."""
        import ray
        from ray import serve

        self._closed.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        try:
            serve.delete(self._name)
        finally:
            ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deploy(
        self, load: partial[dict[str, Model]], scale: ReplicaScale, device: str
    ) -> DeploymentHandle:
        from ray import serve

        deployment = serve.deployment(
            Replica,
            name=DEPLOYMENT,
            max_ongoing_requests=self._limits.rows,  # what an engine can advance at once
            ray_actor_options=_resources(scale.most, device),
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=self._limits.seconds,
            health_check_period_s=5,
            **_options(scale),
        )
        application = deployment.bind(load, self._limits.rows)
        return serve.run(application, name=self._name, route_prefix=None)

    def _run(self) -> None:
        """Run the engines' tasks until the cluster is closed."""
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _watch(self) -> None:
        """Keep count of the replicas that run."""
        from ray import serve

        while not self._closed.is_set():
            try:
                found = serve.status().applications[self._name].deployments[DEPLOYMENT]
                states = found.replica_states.items()
                self._running = sum(count for state, count in states if state == RUNNING)
            except Exception as error:  # the controller is being restarted
                logger.debug("the replicas cannot be counted: %s", error)
            self._closed.wait(COUNT_SECONDS)


def _options(scale: ReplicaScale) -> dict[str, Any]:
    """Return how many replicas there are, as Ray Serve takes it."""
    if scale.least == scale.most:
        return {"num_replicas": scale.most}
    scaling = {
        "min_replicas": scale.least,
        "max_replicas": scale.most,
        "target_ongoing_requests": scale.target,
        "upscale_delay_s": ADD_AFTER,
        "downscale_delay_s": REMOVE_AFTER,
    }
    return {"autoscaling_config": scaling}


def _connect(address: str | None, most: int) -> None:
    """Start Ray on this machine, or join the cluster at an address; nothing is sent elsewhere.

    Raises:
        RuntimeError: neither can be done.
    """
    import ray
    from ray import serve

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cpus = max(most, os.cpu_count() or 1)  # every replica starts, be there fewer cores
        options |= {"num_cpus": cpus, "include_dashboard": False}
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    attempts = 1 if address else STARTS
    for attempt in range(attempts):
        try:
            ray.init(address or "local", **options)
            break
        except Exception as error:  # Ray raises what it likes, a plain Exception too
            ray.shutdown()
            if attempt == attempts - 1:
                where = f"join the Ray cluster at {address}" if address else "start Ray here"
                raise RuntimeError(f"cannot {where}: {error}") from error
    serve.start(proxy_location="Disabled")  # clients are answered by the server itself


def _resources(most: int, device: str) -> dict[str, float]:
    """Return what each replica has to itself: its share of the cores, and a GPU on cuda."""
    import ray

    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    whole = sum(cores) // most
    least = min((c for c in cores if c), default=1)
    share = float(max(1, min(whole, least)))
    return {"num_cpus": share, "num_gpus": float(device.startswith("cuda"))}


async def _sample(
    handle: DeploymentHandle, name: str, request: Request, *, preview_every: int, explain: bool
) -> AsyncGenerator[ReplicaReport, None]:
    """Send a request to some replica, and yield its reports; `Sampling` explains it."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    reports = handle.options(stream=True).sample.remote(
        name, request, preview_every=preview_every, explain=explain
    )
    try:
        async for report in reports:
            yield report
    except RayTaskError:  # a fault of the code, which another replica would have too
        raise
    except (RayError, RayServeException) as error:
        logger.warning("a replica was lost; its requests are sampled by another")
        raise ReplicaLostError(type(error).__name__) from None
    finally:
        reports.cancel()
