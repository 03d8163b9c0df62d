"""What a server takes at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for, and how much is taken at once.

    Args:
        body: bytes of a request's body.
        prompt: characters of a prompt, a negative or an expression.
        pixels: pixels of a picture that is sent.
        samples: samples of a request.
        steps: steps of a request.
        scale: the largest scale of a term.
        evaluations: network evaluations of a request, all samples and steps together.
        rows: rows of a tick of the engine, of each model.
        queue: requests that wait, of each model.
        per_client: requests of a client that are not over.
        seconds: that a request may take, the time in the queue included.
        receive: seconds in which a body must arrive, and in which a client must take an event.
        kept: requests whose pictures are kept, over or not.
        keep: seconds for which pictures are kept.
    """

    body: int = 20_000_000
    prompt: int = 4_000
    pixels: int = 4_194_304
    samples: int = 16
    steps: int = 250
    scale: float = 1_000.0
    evaluations: int = 50_000
    rows: int = 64
    queue: int = 256
    per_client: int = 32
    seconds: float = 600.0
    receive: float = 30.0
    kept: int = 1_000
    keep: float = 600.0
