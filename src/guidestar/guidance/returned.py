"""Check what a term of a user returns, once a run: at the first step at which it acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.passes import Part, Pass, Slot
from ..core.prediction import Prediction
from .context import Live

TAKE_GRADIENTS = (
    "take gradients by live.gradient(loss, through=prediction), and give the class traits = "
    "Traits(gradients=1, differentiates=…), with the pass of that prediction"
)


def check_passes(name: str, passes: object) -> None:
    """Refuse what is no pass, or a pass that cannot be compared with others.

    Args:
        name: of the term, for the message.
        passes: what it returned.

    Raises:
        TypeError: the term is named, and what it should return.
    """
    wanted = "a pass is gs.COND, gs.NULL, gs.NEGATIVE, or gs.Pass(cond=…, perturb=…)"
    if not isinstance(passes, tuple | list):
        raise TypeError(f"{name}: passes must be a tuple of passes, not {passes!r}; {wanted}")
    for p in passes:
        if not isinstance(p, Pass):
            raise TypeError(f"{name}: one of its passes is {p!r}; {wanted}")
        if not isinstance(p.cond, Slot | Part | Condition | str | int):
            raise TypeError(
                f"{name}: the condition of a pass must be gs.Slot.COND, NULL or NEGATIVE, a "
                f"Condition, or a name, not {p.cond!r}; {wanted}"
            )
        try:
            hash(p)
        except TypeError as error:
            raise TypeError(
                f"{name}: one of its passes cannot be compared with others ({error}); what changes "
                "it must be a frozen dataclass of tuples and numbers, without lists"
            ) from None


def check_pushed(name: str, found: object, live: Live) -> None:
    """Refuse a push that torch would spread over samples, or that has no state beside it.

    Args:
        name: of the term, for the message.
        found: what its push returned.
        live: its samples.

    Raises:
        TypeError: no pair of a push and a state.
        ValueError: a push or a state of another shape, kind or name.
    """
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise TypeError(
            f"{name}: push and shape return a pair, the push of x0 and the state: "
            f"return push, live.state; not {_kind(found)}"
        )
    push, state = found
    x0 = live.base.x0
    if not isinstance(push, Tensor) or (push.shape, push.dtype) != (x0.shape, x0.dtype):
        raise ValueError(
            f"{name}: the push must be a tensor like the samples, {tuple(x0.shape)} of {x0.dtype}, "
            f"not {_kind(push)}; every sample has its own"
        )
    for key, value in state.items():
        if key not in live.state:
            raise ValueError(f"{name}: its state {key!r} is not in what start(x_t) returns")
        if not isinstance(value, Tensor) or value.shape[:1] != x0.shape[:1]:
            raise ValueError(
                f"{name}: its state {key!r} must be a tensor [{len(x0)}, …], one for each sample, "
                f"not {_kind(value)}"
            )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


@contextmanager
def watching(name: str, live: Live, predictions: Sequence[Prediction]) -> Iterator[None]:
    """Return a context in which a term may read its predictions, but not change them.

    Inference tensors count no versions, so copies are compared.

    Raises:
        RuntimeError: a tensor that terms share was changed in place, or a gradient was taken
            without autograd; the term is named.
    """
    shared = {"x_t": live.x_t}
    for i, p in enumerate(predictions):
        shared |= {f"x0 of prediction {i + 1}": p.x0, f"eps of prediction {i + 1}": p.eps}
    shared |= {"the base": live.base.x0}
    before = {what: tensor.detach().clone() for what, tensor in shared.items()}
    try:
        yield
    except RuntimeError as error:
        if "does not require grad" in str(error) or "nference tensor" in str(error):
            raise RuntimeError(
                f"{name}: push runs without autograd ({error}); {TAKE_GRADIENTS}"
            ) from error
        raise
    for what, tensor in shared.items():
        if not torch.equal(tensor.nan_to_num(), before[what].nan_to_num()):
            raise RuntimeError(
                f"{name}: its push changes {what} in place, which all terms share; compute a new "
                "tensor, e.g. a - b for a.sub_(b)"
            )
