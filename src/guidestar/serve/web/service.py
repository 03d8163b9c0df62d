"""The models that are served, the requests that were taken, and whose they are."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ...model.model import Model
from ...model.motions import body_of_model
from ...motion.drawing import ABOVE
from ..engine import Engine
from ..protocol import AnyEngine
from .building import build
from .errors import RefusedError
from .job import Job
from .limits import Limits
from .metrics import Metrics
from .motion_files import SIDE
from .schemas import SampleRequest

_log = logging.getLogger("guidestar.serve")


class Service:
    """Serves models: an engine for each, and the requests that clients sent.

    Args:
        models: by the name under which they are served.
        limits: of requests.
        start: makes the engine of a model, within the limits.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        limits: Limits | None = None,
        start: Callable[[Model, Limits], AnyEngine] | None = None,
    ) -> None:
        self.limits = limits = limits or Limits()
        self.sizes = {name: picture_size(model) for name, model in models.items()}
        start = start or start_engine
        self.engines = {name: start(model, limits) for name, model in models.items()}
        self.metrics = Metrics(self.engines)
        self.draining = False
        self.studio = False
        self._jobs: dict[str, Job] = {}
        self._arriving: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._encoder = ThreadPoolExecutor(1, "guidestar-encoder")

    def engine(self, name: str | None) -> tuple[str, AnyEngine]:
        """Return an engine by the name of its model, the first by default.

        Raises:
            RefusedError: no model of that name is served.
        """
        if name is None:
            return next(iter(self.engines.items()))
        if name not in self.engines:
            served = ", ".join(self.engines)
            text = f"there is no model {name[:100]!r} here; the models are {served}"
            raise RefusedError(404, "model_not_found", text, "model")
        return name, self.engines[name]

    def submit(self, body: SampleRequest, owner: str, *, task: str | None = None) -> Job:
        """Take a request. It encodes conditions, so it is to be called from a worker thread.

        Raises:
            RefusedError: it is over a limit, or the server takes no more.
            ValueError: as `Model.request`.
            EngineError: the queue is full.
        """
        if self.draining:
            raise RefusedError(503, "closed", "the server is going down; it takes no more requests")
        name, engine = self.engine(body.model)
        request = build(engine.model, body, self.limits)
        seconds = min(body.timeout or self.limits.seconds, self.limits.seconds)
        self._arrive(owner)
        try:
            ticket = engine.submit(
                request,
                preview_every=body.preview_every,
                timeout=seconds,
                explain=body.explain,
            )
            job = Job(ticket, owner, task)
            with self._lock:
                self._jobs[job.id] = job
        finally:
            with self._lock:
                self._arriving[owner] -= 1
                self._arriving += Counter()  # drops what is 0
        ticket.watch(lambda t: self._end(name, job) if t.is_over else None)
        if ticket.is_over:  # before it was watched
            self._end(name, job)
        return job

    def find(self, name: str, owner: str | None = None) -> Job:
        """Return a request by its id, which is a secret; or only if it is ``owner``'s.

        Raises:
            RefusedError: there is none.
        """
        job = self._jobs.get(name)
        if job is None or (owner is not None and job.owner != owner):
            raise RefusedError(404, "not_found", "there is no such request; it may have expired")
        return job

    def own(self, owner: str, task: str | None = None) -> list[Job]:
        """Return a client's requests that are under way, the oldest first; or those of a task."""
        with self._lock:
            jobs = list(self._jobs.values())
        return [
            j
            for j in jobs
            if j.owner == owner and not j.ticket.is_over and (task is None or j.task == task)
        ]

    def forget(self, job: Job) -> None:
        """Cancel a request, and drop its pictures."""
        job.ticket.cancel()
        with self._lock:
            self._jobs.pop(job.id, None)

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests; give those that were taken ``grace`` seconds to be done."""
        self.draining = True
        closing = [
            threading.Thread(target=engine.close, args=(grace,)) for engine in self.engines.values()
        ]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self._encoder.shutdown()

    def _arrive(self, owner: str) -> None:
        """Refuse a client that has as many requests under way as one may."""
        with self._lock:
            self._sweep()
            live = sum(j.owner == owner and not j.ticket.is_over for j in self._jobs.values())
            live += self._arriving[owner]
            if live >= self.limits.per_client:
                text = f"you have {live} requests under way, as many as one may; wait for one"
                raise RefusedError(429, "too_many_requests", text)
            self._arriving[owner] += 1

    def _end(self, name: str, job: Job) -> None:
        """Count a request that is over, once, and have its pictures made."""
        with self._lock:
            if job.counted:
                return
            job.counted = True
        self.metrics.observe(name, job.ticket)
        try:
            self._encoder.submit(job.keep_pictures)
        except RuntimeError:  # the server is going down; pictures are then made where fetched
            _log.debug("the encoder is closed")

    def _sweep(self) -> None:
        """Drop what is older than it is kept, and the oldest beyond the number that is."""
        now = time.monotonic()
        over = [j for j in self._jobs.values() if j.ticket.ended is not None and j.ticket.is_over]
        spare = len(self._jobs) - self.limits.kept
        for k, job in enumerate(over):
            if k < spare or now - (job.ticket.ended or now) > self.limits.keep:
                del self._jobs[job.id]


def start_engine(model: Model, limits: Limits) -> Engine:
    """Return an engine in this process."""
    return Engine(
        model,
        max_rows=limits.rows,
        max_queue=limits.queue,
        max_samples=limits.samples,
        max_evaluations=limits.evaluations,
    )


def picture_size(model: Model) -> tuple[int, int]:
    """Return the width and height of a model's pictures; of motions, of what is drawn of them.

    Raises:
        ValueError: it makes none.
    """
    shape = model.image_shape
    if shape is None and body_of_model(model) is not None:
        return SIDE, SIDE + round(SIDE * ABOVE)
    if shape is None:
        raise ValueError(f"the model {model.name!r} makes no pictures, so it cannot be served")
    return shape[2], shape[1]
