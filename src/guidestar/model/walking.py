"""A request as a generator: what a model's `sample` and a server drive, alone or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from ..core.evaluation import Asking, Round, evaluate
from ..core.rng import Draw
from ..sampling import State, advance, check_finite, noise, noised, trajectory
from .request import Request
from .samples import Samples

if TYPE_CHECKING:
    from ..guidance import Guided
    from .model import Model

T = TypeVar("T")

LARGE_PUSH = 1000.0
"""How many times as large as the samples a term's push is when it is to blame for what is not
finite.
"""


def starting_samples(model: Model, request: Request) -> Tensor:
    """Return where a request starts, ``[B, *S]``: noise, or noised data."""
    draw = Draw(request.seeds)
    if request.start is None:
        return noise(model.shape, request.levels[0], draw, device=model.device)
    return noised(request.start.to(model.device), request.levels[0], draw)


def walk_request(
    model: Model,
    request: Request,
    guided: Guided,
    *,
    explain: bool = False,
    watch: Callable[[State], None] | None = None,
) -> Asking[State]:
    """Walk a request, and return its last state.

    A generator, so that many requests can be driven side by side
    (`guidestar.core.evaluation.drive`), each with its own steps, solver and guidance.

    Args:
        model: that the request is of.
        request: what to sample.
        guided: `Model.bind` of the request.
        explain: also carry each term's push in the states.
        watch: called with the state after each step.

    Raises:
        ValueError: the solver cannot serve this guidance.
    """
    request.solver.check(guided, request.levels)
    draw, x, state = Draw(request.seeds), starting_samples(model, request), None
    for index in range(request.levels.steps):
        step = request.levels.step(index)
        state = yield from advance(guided, request.solver, x, step, draw, state, explain)
        x = state.x
        if watch:
            watch(state)
    assert state is not None  # a grid has at least one step
    return state


def walk_states(
    model: Model, request: Request, *, explain: bool = False, check: bool = False
) -> Iterator[State]:
    """Yield the state after each step of a request; `Model.states` explains it."""
    states = trajectory(
        model.bind(request, check=check),
        starting_samples(model, request),
        grid=request.levels,
        solver=request.solver,
        draw=Draw(request.seeds),
        explain=explain,
    )
    try:
        for state in states:
            if state.step.index == state.step.grid.steps - 1:
                model.warn_of_divergence(state.x, state.step.s)
            yield state
    except FloatingPointError as error:
        if check:
            raise
        blamed = drive_alone(find_blame(model, request))
        raise FloatingPointError(blamed or str(error)) from error


def finish(model: Model, request: Request, state: State) -> Samples:
    """Return the samples of a request's last state, decoded.

    Raises:
        FloatingPointError: they are not finite.
    """
    check_finite(state.x)
    return Samples(
        x=state.x,
        images=model.to_images(state.x),
        settings=model.settings(request, dtype=state.x.dtype),
        evaluations=state.evaluations,
    )


def find_blame(model: Model, request: Request) -> Asking[str | None]:
    """Walk a request again with each output checked, and say which term or network made the samples
    not finite.

    A generator like `walk_request`. A `FloatingPointError` of an evaluation is to be thrown into
    it, which `drive_alone` does.
    """
    largest: list[tuple[float, str, int]] = []

    def watch(state: State) -> None:
        size = float(state.prediction.x_t.abs().max()) + 1
        for term, push in (state.pushes or {}).items():
            pushed = float(push.abs().max()) / size
            if not pushed < LARGE_PUSH and not largest:
                largest.append((pushed, term, state.step.index))

    guided = model.bind(request, check=True)
    try:
        state = yield from walk_request(model, request, guided, explain=True, watch=watch)
        check_finite(state.x)
    except FloatingPointError as error:
        if not largest:
            return str(error)
    if not largest:
        return None
    times, term, step = largest[0]
    return (
        f"the samples are not finite: at step {step} the push of '{term}' was {times:.1g} "
        "times as large as the samples; lower its scale"
    )


def drive_alone(asking: Asking[T]) -> T:
    """Run one generator to its end; an error of an evaluation is thrown into it."""
    try:
        wanted: Round = next(asking)
        while True:
            try:
                answers = evaluate(wanted)[0]
            except FloatingPointError as error:
                wanted = asking.throw(error)
            else:
                wanted = asking.send(answers)
    except StopIteration as end:
        return end.value
