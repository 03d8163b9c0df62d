"""A request that a server has taken, and its pictures."""

from __future__ import annotations

import base64
import threading
import time
from dataclasses import asdict
from typing import Any

import torch

from ...io.documents import JSONObject
from ...io.images import to_bytes, to_pil
from ...model.motions import body_of_model
from ..ticket import Ticket
from .errors import RefusedError, refused
from .motion_files import MEDIA, SampledMotion, moving_previews, moving_samples


class Job:
    """A request that was taken: its ticket, whose it is, and its pictures once they are encoded.

    Args:
        ticket: of the engine.
        owner: the client.
        task: the name that the client gave it.
    """

    def __init__(self, ticket: Ticket, owner: str, task: str | None = None) -> None:
        self.ticket, self.owner, self.task = ticket, owner, task
        self.id = ticket.id
        self.created = time.time()
        self.counted = False
        self._pictures: list[Any] | None = None
        self._settings: JSONObject = {}
        self._lock = threading.Lock()

    @property
    def seeds(self) -> list[int]:
        """The seed of each sample."""
        return list(self.ticket.request.seeds)

    def keep_pictures(self) -> None:
        """Turn the samples into pictures, and let go of their tensors."""
        with self._lock:
            if self._pictures is None and self.ticket.samples is not None:
                samples = self.ticket.samples
                self._settings = asdict(samples.settings)
                moving = moving_samples(self.ticket.model, samples)
                self._pictures = samples.pil() if moving is None else moving
                self.ticket.samples = None

    def encoded(self, index: int, kind: str = "png") -> bytes:
        """Return a picture, encoded; a PNG carries its settings. A motion's picture moves, and its
        ``kind`` may be bvh or npz too.

        Raises:
            RefusedError: it is not there.
        """
        if self.ticket.error is not None:
            raise refused(self.ticket.error)
        self.keep_pictures()
        if self._pictures is None:
            raise RefusedError(409, "not_done", "the request is not done yet; ask again later")
        if not 0 <= index < len(self._pictures):
            raise RefusedError(404, "not_found", f"there are {len(self._pictures)} pictures")
        own = {**self._settings, "stride": 1, "index": index, "number": index}
        picture = self._pictures[index]
        if isinstance(picture, SampledMotion):
            return picture.encoded(own, kind)
        if kind in MEDIA:
            raise RefusedError(
                404, "not_found", f"a picture is no motion; there is no {kind} of it"
            )
        return to_bytes(picture, own, kind)

    def all_encoded(self, kind: str = "png") -> list[str]:
        """Return all pictures in base64."""
        return [to_base64(self.encoded(k, kind)) for k in range(len(self.seeds))]

    def previews(self, kind: str = "png") -> list[str]:
        """Return the last preview of each sample in base64; empty if there is none."""
        preview = self.ticket.preview
        if preview is None:
            return []
        with torch.inference_mode():
            if body_of_model(self.ticket.model) is not None:
                shown = moving_previews(self.ticket.model, preview.x0)
            else:
                shown = to_pil(self.ticket.model.to_images(preview.x0))
        return [to_base64(to_bytes(image, None, kind)) for image in shown]

    def describe(self) -> JSONObject:
        """Say where it stands."""
        ticket = self.ticket
        error = None if ticket.error is None else refused(ticket.error).body["error"]
        count = len(self.seeds) if ticket.status == "done" else 0
        return {
            "id": self.id,
            "model": ticket.model.name,
            "status": ticket.status,
            "place": ticket.place,
            "steps_done": ticket.steps_done,
            "steps": ticket.steps,
            "seeds": self.seeds,
            "guidance": str(ticket.request.guidance),
            "created": int(self.created),
            "warnings": list(ticket.warnings),
            "error": error,
            "pushes": [
                {"step": p.step, "rho": p.rho, "base": p.base, "terms": p.sizes}
                for p in ticket.pushes
            ],
            "images": [f"/v1/images/{self.id}/{k}.png" for k in range(count)],
            **self._motion_files(count),
        }

    def _motion_files(self, count: int) -> dict[str, list[str]]:
        if body_of_model(self.ticket.model) is None:
            return {}
        return {kind: [f"/v1/motions/{self.id}/{k}.{kind}" for k in range(count)] for kind in MEDIA}


def to_base64(data: bytes) -> str:
    """Encode bytes as base64."""
    return base64.b64encode(data).decode()
