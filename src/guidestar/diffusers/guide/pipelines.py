"""Our guidance inside the pipelines people already have:
``guidestar.guide(pipe, "cfg(7.5) + pag(3)")``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from torch import Tensor

from ...core.levels import VP
from ...guidance import Direction, Guidance, parse
from ...guidance.bases.loss_term import Steered
from ...guidance.serialize import literal
from ...guidance.term import as_guidance
from ...networks.network import Network
from ...sampling.grids import uniform
from ..guidance_file import guidance_of
from ..objects import Answer, Arguments, DiffusersNetwork, Pipeline
from ..read.vae import ThroughDecoder, check_known
from .classes import answered, as_it_is, become, guided_kind, plain_kind
from .families import networks
from .kinds import check_kind, learns, warn_of_numbers
from .learnt import LearntRun
from .run import Run
from .walk import Wanted

_P = TypeVar("_P")


class Options(TypedDict, total=False):
    """The further arguments of `guide`."""

    nets: Mapping[str, DiffusersNetwork] | None
    classifiers: Mapping[str, object] | None
    target: int | Sequence[int] | Tensor | None
    seeds: Sequence[int] | None
    through_vae: bool
    max_rows: int | None
    check: bool


def guide(
    pipe: _P,
    guidance: str | Path | Guidance | Direction | None,
    *,
    nets: Mapping[str, DiffusersNetwork] | None = None,
    classifiers: Mapping[str, object] | None = None,
    target: int | Sequence[int] | Tensor | None = None,
    seeds: Sequence[int] | None = None,
    through_vae: bool = False,
    max_rows: int | None = None,
    check: bool = False,
) -> _P:
    """Replace the guidance of a Diffusers pipeline by ours, and return the pipeline.

    While the pipeline runs, each call of its denoising network is answered by
    ``post( base + Σ weightᵢ(step) · shapeᵢ(directionᵢ) )`` of that network's own passes: its rows
    for the prompt are ``cond``, those for the negative prompt ``uncond`` and ``neg``. Both halves
    of a batch get the same answer g, so the pipeline's own ``u + s(c − u)`` leaves it as it is,
    whatever s. The level is the scheduler's own at the given timestep. Between runs nothing is
    changed: LoRAs, ControlNets, schedulers, devices, offloading and compiled networks may be
    exchanged at any time.

    Args:
        pipe: a pipeline with a ``unet`` or ``transformer`` of a family known here.
        guidance: an expression, or a path to a ``guidance.toml``, of which the guidance alone is
            taken (a warning names what else it sets); None gives the pipeline its own guidance
            back.
        nets: further networks by name, of the same arguments ("weak" for autoguidance).
        classifiers: objects with ``log_prob(x, level, target)``, by name; CLIPs too. They get the
            pipeline's latents, ``[B, C, *S]``.
        target: the class of each sample, for classifiers; by default the pipeline's class labels.
        seeds: one integer a sample, for guidances that draw random numbers; by default made of the
            state of the pipeline's generator.
        through_vae: classifiers get the pictures that the pipeline's VAE makes of clean estimates
            (``through="cond"``), in [−1, 1]; recomputed for the gradient, to save memory.
        max_rows: the most rows of one network call.
        check: refuse outputs that are not finite.

    Raises:
        ExpressionError: the expression does not parse.
        ValueError: the pipeline has no network known here, the network lacks a layer, or a term
            cannot work within a pipeline; each is named with what to do instead. What only
            the run shows (no negative rows, another device) is refused when the pipeline is called.

    Example:
        >>> from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        >>> size = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 2}
        >>> net = UNet2DModel(**size, **blocks)
        >>> pipe = guide(DDPMPipeline(net, DDIMScheduler()), "uncond | threshold(0.995)")
    """
    kind = type(pipe)
    plain = plain_kind(kind)
    if guidance is None:
        return become(pipe, plain)
    guidance = guidance_of(guidance)
    expression = parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)
    check_kind(pipe)
    _check_terms(expression, pipe)
    _check_layers(expression, networks(pipe), nets or {})
    judges = (
        {name: _through_vae(pipe, c) for name, c in (classifiers or {}).items()}
        if through_vae
        else classifiers or {}
    )
    wanted = Wanted(
        guidance=expression,
        nets=nets or {},
        classifiers=judges,
        target=target,
        seeds=seeds,
        max_rows=max_rows,
        check=check,
    )
    return become(pipe, _guided_kind(plain, wanted))


@contextmanager
def guided(
    pipe: _P, guidance: str | Path | Guidance | Direction, **options: Unpack[Options]
) -> Iterator[_P]:
    """Guide a pipeline within a ``with`` block; after it, it has the guidance that it had before.

    Args:
        pipe: as in `guide`.
        guidance: as in `guide`.
        **options: as in `guide`.

    Raises:
        ValueError: as `guide` does.
    """
    before = type(pipe)
    try:
        yield guide(pipe, guidance, **options)
    finally:
        become(pipe, before)


def _guided_kind(plain: type, wanted: Wanted) -> type:
    signature = inspect.signature(plain.__call__)

    @wraps(plain.__call__)
    def call(self: Pipeline, *args: object, **kwargs: object) -> Answer:
        bound = signature.bind(self, *args, **kwargs)
        given = dict(bound.arguments)
        bound.apply_defaults()
        _refuse_own(self, bound.arguments)
        _refuse_caches(self)
        _check_layers(wanted.guidance, networks(self), wanted.nets)  # may be compiled since
        warn_of_numbers(self, given, bound.arguments, wanted.guidance)
        run = _kind_of_run(self)(self, wanted, dict(bound.arguments), as_it_is)
        with answered(networks(self), run.answer), run.stepping():
            result = plain.__call__(self, *args, **kwargs)
        run.check_ended(result)
        return result

    return guided_kind(plain, call, wanted)


def _kind_of_run(pipe: object) -> type[Run] | type[LearntRun]:
    return LearntRun if learns(pipe) else Run


def guided_again(
    plain: type, wanted: Wanted, made: Callable[..., Pipeline], rest: tuple[object, ...]
) -> Pipeline:
    """Make the object that a copy or a pickle of a guided pipeline fills."""
    return become(made(plain, *rest), _guided_kind(plain, wanted))


def _refuse_own(pipe: Pipeline, arguments: Arguments) -> None:
    """Refuse a pipeline's own further passes, which would come on top."""
    if arguments.get("pag_scale") and hasattr(pipe, "do_perturbed_attention_guidance"):
        raise ValueError(
            f"{type(pipe).__name__} makes a perturbed pass of its own; give pag_scale=0, and "
            f"write pag({arguments['pag_scale']:g}) in the expression"
        )


def _refuse_caches(pipe: Pipeline) -> None:
    """Refuse networks with a cache of Diffusers', which counts the pipeline's own calls."""
    for place, net in networks(pipe).items():
        if getattr(net, "is_cache_enabled", False):
            raise ValueError(
                f"the {place} of {type(pipe).__name__} has a cache (enable_cache), which takes "
                "guided calls for the pipeline's own; switch it off, "
                f"pipe.{place}.disable_cache(), and write cfg(5, every=2) to save passes"
            )


def _check_terms(guidance: Guidance, pipe: object) -> None:
    """Refuse terms that a foreign scheduler cannot follow, and those that name a loss."""
    for term in guidance.terms:
        why = (
            "splits the prediction (x0 moves, eps does not)"
            if not term.traits.linked
            else "depends on the level that the step leads to"
            if term.traits.reads_target
            else f"works with the solver {term.traits.only_solver[0]} alone"
            if term.traits.only_solver
            else None
        )
        if why:
            raise ValueError(
                f"{term.name} {why}, which the scheduler of {type(pipe).__name__} cannot follow; "
                "load the model with guidestar.load and use a solver of ours"
            )
        if isinstance(term, Steered) and isinstance(term.loss, str):
            own = f"{term.name}({literal(term.scale)}, loss=…)"
            raise ValueError(
                f"{term.name} lowers a loss, and a pipeline has none by name; make the term in "
                f"Python with its own, {own}, "
                "or load the pipeline's folder with guidestar.load and use sample(losses=…)"
            )


def _check_layers(
    guidance: Guidance, nets: Mapping[str, DiffusersNetwork], others: Mapping[str, DiffusersNetwork]
) -> None:
    """Let each perturbation find its layers."""
    if "main" in others:
        raise ValueError(
            "the network 'main' is the pipeline's own; give further ones another name, as "
            "nets={'weak': net}"
        )
    step = uniform(VP.linear(), 2).step(0)
    for term in guidance.terms:
        if isinstance(term, Steered):  # a loss perturbs nothing, and its pass is the run's
            continue
        for p in term.passes(step):
            if p.perturb is None or p.net != "main":
                continue
            for net in nets.values():
                with p.perturb(Network(net)):
                    pass


def _through_vae(pipe: object, inner: object) -> ThroughDecoder:
    """Return a classifier of pictures, applied to latents that the pipeline's VAE decodes."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise ValueError(f"{type(pipe).__name__} has no VAE to look through; leave through_vae out")
    try:
        check_known(vae)
    except ValueError as error:
        raise ValueError(
            f"{type(pipe).__name__}: {error}; leave through_vae out, and classify the latents"
        ) from None
    return ThroughDecoder(vae, inner)


__all__ = ["guide", "guided"]
