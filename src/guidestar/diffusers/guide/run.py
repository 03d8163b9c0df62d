"""One run of a guided pipeline: from its first call of the network to the last."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...core.levels import Step
from ...core.passes import Net
from ..objects import Answer, Arguments, DiffusersNetwork, Pipeline
from .call import Call, CallDenoiser, bound, grouped
from .families import (
    family_of,
    negative_rows,
)
from .levels import read_timetable
from .walk import Walk


class Run(Walk):
    """Answer each call of a pipeline's network with the guided prediction; arguments as `Walk`."""

    def answer(self, net: DiffusersNetwork, args: tuple[object, ...], kwargs: Arguments) -> Answer:
        """Answer one call of ``net``."""
        call = self._read(net, args, kwargs)
        place = self._place(call)
        if self.pending is not None and self.pending[0] == place:
            return self._second(net, call, place)
        if self.pending is not None:
            raise RuntimeError(
                f"{type(self.pipe).__name__} was expected to call its network for the negative "
                "prompt at the same timestep, and did not"
            )
        if call.family.calls == 2 and negative_rows(self.pipe, call.family, self.arguments):
            return self._first(call, place)
        return self._make_answer(net, call, self._guide(net, call, place))

    def stepping(self) -> AbstractContextManager[None]:
        """Leave the scheduler's steps as they are."""
        return nullcontext()

    def check_ended(self, result: Answer) -> None:
        """Refuse a run whose last call for the prompt was not followed by one for the negative, or
        whose numbers are not finite.

        Raises:
            RuntimeError: it was not.
            FloatingPointError: they are not.
        """
        if self.pending is not None:
            raise RuntimeError(
                f"{type(self.pipe).__name__} was expected to call its network for the negative "
                "prompt at the same timestep, and did not"
            )
        self.watch.end(result)

    def _first(self, call: Call, place: int) -> Answer:
        """Answer the prompt's call by a tensor that the negative prompt's call fills."""
        shape = [*call.whole.shape]
        shape[call.family.channel] = call.channels
        promised = call.whole.new_full(shape, torch.nan)
        self.pending = place, call, promised
        return _like_answer(None, call, promised)

    def _second(self, net: DiffusersNetwork, call: Call, place: int) -> Answer:
        assert self.pending is not None  # the call for the prompt came first
        _, before, promised = self.pending
        self.pending = None
        out = self._guide(net, before.merged(call), place)
        promised.copy_(out)
        return self._make_answer(net, call, out.to(promised.dtype))

    def _make_answer(self, net: DiffusersNetwork, call: Call, out: Tensor) -> Answer:
        denoiser = self.nets.now["main"].denoiser
        assert isinstance(denoiser, CallDenoiser)  # as _bind made it
        return _like_answer(denoiser.answer, call, torch.cat([out] * len(call.parts)))

    def _read(self, net: DiffusersNetwork, args: tuple[object, ...], kwargs: Arguments) -> Call:
        arguments = dict(bound(net, args, kwargs))
        if arguments.get("skip_layers") is not None:
            raise ValueError(
                f"{type(self.pipe).__name__} skips layers itself (skip_guidance_layers); leave "
                "that out, and write slg(2.8, interval=…) in the expression"
            )
        arguments["timestep"] = torch.as_tensor(arguments["timestep"])
        family = family_of(self.pipe, net)
        two = family.calls == 2
        parts = (
            ("uncond" if two and self.pending else "cond",)
            if two or not negative_rows(self.pipe, family, self.arguments)
            else family.parts
        )
        channels, learned = _channels(self.pipe, net, family.channel == 1)
        return Call(
            family=family,
            arguments=grouped(arguments, len(arguments[family.x])),
            parts=parts,
            channels=channels,
            learned_variance=learned,
        )

    def _place(self, call: Call) -> int:
        if (
            self.table is None
            or not self.table.current
            or self.table.scheduler is not self.pipe.scheduler
        ):
            self.table = read_timetable(self.pipe.scheduler)
            self._restart(0)
            self._restart(self.table.place(call.arguments["timestep"], -1))
        place = self.table.place(call.arguments["timestep"], self.last)
        if place < self.last:
            self._restart(place)
        self.last = place
        return place

    def _guide(self, net: DiffusersNetwork, call: Call, place: int) -> Tensor:
        table = self._read_table()
        step = self._step(place, table)
        denoiser = self._bind(net, call, step)
        self._check(call, [step, *self._ahead(call, place)])
        if step.index != self.step:
            self.step, self.state, self.after = step.index, self.after, None
        dtype = torch.float32 if call.x.device.type == "mps" else torch.float64
        prediction, state = self._read_sum()(call.x.to(dtype), step, self.state)
        self.after = state if self.after is None else self.after
        out = denoiser.written(prediction)
        self.watch.record(
            step, call.x, torch.stack([d.finite for d in self._denoisers()]).all(), out
        )
        return out

    def _denoisers(self) -> list[CallDenoiser]:
        return [
            net.denoiser for net in self.nets.now.values() if isinstance(net.denoiser, CallDenoiser)
        ]

    def _bind(self, net: DiffusersNetwork, call: Call, step: Step) -> CallDenoiser:
        """Bind the networks to this call, and make the guided sum at the first."""
        table = self._read_table()
        conditional = bool(call.prompts)
        has_null = "uncond" in call.parts or not conditional
        own = {
            "cond": call.condition("cond") if conditional else None,
            "null": call.condition("uncond" if "uncond" in call.parts else "cond")
            if has_null
            else None,
            "encode": lambda names: self._encode(call, tuple(names)),
            "part": call.condition if "image" in call.parts else None,
        }
        everyone = {"main": net, **self.wanted.nets}
        denoisers = {
            name: CallDenoiser(
                net=n,
                run=self.run,
                call=call,
                output=table.output,
                level=step.t,
                reads_t=table.reads_t,
            )
            for name, n in everyone.items()
        }
        self.nets.now = {name: Net(denoiser=d, **own) for name, d in denoisers.items()}
        if self.guided is None:
            self._check_beside(net, call)
            self.guided = self._make(call)
        return denoisers["main"]


def _channels(pipe: Pipeline, net: DiffusersNetwork, plain: bool) -> tuple[int, bool]:
    """Return how many channels the sample has, and whether the network predicts its variance
    too.
    """
    inputs = net.config.in_channels
    outputs = net.config.out_channels or inputs
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    latent = getattr(getattr(vae, "config", None), "latent_channels", None) if plain else None
    learned = outputs == 2 * inputs or (
        inputs > outputs and latent is not None and outputs == 2 * latent
    )
    return (outputs // 2 if learned else outputs), learned


def _like_answer(answer: Answer, call: Call, out: Tensor) -> Answer:
    """Return an output in the form in which the network gives it."""
    if isinstance(answer, tuple) or (answer is None and call.arguments.get("return_dict") is False):
        return (out, *(answer or ())[1:])
    if answer is not None:
        return type(answer)(sample=out)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=out)
