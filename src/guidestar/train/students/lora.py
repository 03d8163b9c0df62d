"""Distil the guidance of a Diffusers pipeline into a LoRA, which Diffusers alone can use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition, Denoiser
from ...data.source import Column, InMemory
from ...io.documents import read_json
from ...io.files import make_folder, name_write_errors
from ...model.folder import load
from ...model.model import Model
from ..loop.fit import fit
from ..loop.lock import locked
from ..loop.origins import of_tensors
from ..loop.signals import Stop
from ..loop.trainer import Trainer
from ..objectives.guided_distillation import GuidedDistillation
from ..objectives.level_distributions import LogitNormal
from ..objectives.objective import TrainSettings
from ..objectives.teacher import Teacher, takes_scale
from ..progress import Reporter
from .stages import weighting

LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "proj_mlp"),
)
"""Ends of the names of the linear layers that are adapted, where a network has them."""

_STAGE = "lora"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """What a LoRA learns.

    Args:
        teacher: a pipeline's folder, or the name of one on the Hugging Face hub.
        guidance: the expression.
        prompts: what the teacher is given, in turn; classes of a pipeline of classes.
        rank: of the adapted layers.
        samples: how many samples of the teacher are noised.
        steps: of the teacher's sampling of these; by default its own.
        train: how long and how fast.
        seed: of the teacher's first sample; the others follow.

    Raises:
        ValueError: a number is out of range, there is no prompt, or the expression holds w.
    """

    teacher: str
    guidance: str
    prompts: tuple[str, ...]
    rank: int = 16
    samples: int = 64
    steps: int | None = None
    train: TrainSettings
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of a LoRA must be at least 1, not {self.rank}")
        if self.samples < 1:
            raise ValueError(f"the teacher must give at least 1 sample, not {self.samples}")
        if not self.prompts:
            raise ValueError(
                "there are no prompts to distil on; give a file of prompts, one a line"
            )
        if takes_scale(self.guidance):
            raise ValueError(
                "a LoRA has no input for the scale w; write the scale as a number, e.g. cfg(7)"
            )


class Prompts(nn.Module):
    """The encoded conditions of some prompts; a row is the index of one, the last is the null."""

    def __init__(self, model: Model, prompts: Sequence[str]) -> None:
        super().__init__()
        encoder = model.encoder
        null = None if encoder is None else encoder.null(1)
        if encoder is None or null is None:
            raise ValueError(
                f"the pipeline {model.name!r} takes no condition, so it has no guidance to distil"
            )
        with torch.no_grad():
            known = [encoder.encode([prompt]) for prompt in prompts]
            table = Condition.join([*known, null])
        self.parts, self.count = {"prompt": self}, len(prompts)
        self.names = tuple(table)
        for name, values in table.items():
            self.register_buffer(f"of_{name}", values.clone(), persistent=False)

    def null_rows(self, name: str) -> Tensor:
        """Return the row that means "no prompt"."""
        return torch.tensor(self.count)

    def null(self, batch: int) -> Condition:
        """Return the null condition for ``batch`` samples."""
        return self({"prompt": torch.full((batch,), self.count)})

    def forward(self, rows: Mapping[str, Tensor]) -> Condition:
        """Return the conditions of prompts, by index."""
        tables = {name: getattr(self, f"of_{name}") for name in self.names}
        return Condition({name: t[rows["prompt"].to(t.device)] for name, t in tables.items()})


class Adapted(nn.Module):
    """A pipeline's denoiser with a LoRA; its only parameters are those of the LoRA."""

    def __init__(self, denoiser: Denoiser, encoder: Prompts, network: Any, rank: int) -> None:
        super().__init__()
        from peft import LoraConfig

        linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        chosen = [n for n in linear if n.endswith(LAYERS)]
        if not chosen:
            raise ValueError(
                f"{type(network).__name__} has no linear layers of attention that a LoRA adapts"
            )
        network.requires_grad_(False)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen))
        # Out of this module's sight, so that checkpoints and averages hold the LoRA alone.
        self._held = (denoiser, encoder, network)
        self.adapter = nn.ParameterDict(
            {
                name.replace(".", "/"): parameter
                for name, parameter in network.named_parameters()
                if parameter.requires_grad
            }
        )

    @property
    def denoiser(self) -> Denoiser:
        return self._held[0]

    @property
    def encoder(self) -> Prompts:
        return self._held[1]

    @property
    def network(self) -> Any:
        return self._held[2]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the network be the pipeline's own for a while."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()


def distil_lora(
    spec: LoRA,
    out: Path,
    report: Reporter | None = None,
    *,
    stop: Stop | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Path | None:
    """Train a LoRA that gives a pipeline's guided prediction in one pass, and write it.

    ``pipe.load_lora_weights(out)`` with ``guidance_scale=1`` uses it in Diffusers alone. The
    training goes on from its checkpoint under ``out``.

    Args:
        spec: what is learned.
        out: folder of the checkpoint, and of ``pytorch_lora_weights.safetensors``.
        report: called after each step with the stage, its progress and its steps.
        stop: where it was set, the training stops after a step, saved.
        watch: called after each step of the teacher's sampling.

    Returns:
        The file; None where the training was stopped before its end.

    Raises:
        ValueError: the pipeline is not read, is distilled already, or its guidance cannot be
            learned.
        OSError: ``out`` cannot be written to.
    """
    with locked(make_folder(out)):
        model = load(spec.teacher)
        network = _network_of(model, spec.teacher)
        encoder = Prompts(model, spec.prompts)
        data = _samples(model, spec, watch)
        digest = of_tensors(network.state_dict())
        torch.manual_seed(spec.seed)
        student = Adapted(model.denoiser, encoder, network, spec.rank)
        teacher = Teacher(
            denoiser=model.denoiser,
            encoder=encoder,  # type: ignore[arg-type]
            guidance=spec.guidance,
            schedule=model.schedule,
            context=student.off,
        )
        teacher.check()
        trainer = Trainer(
            student,
            GuidedDistillation(
                teacher=teacher,
                levels=LogitNormal(std=1.5),
                weighting=weighting(teacher),
                dropout=0.0,
            ),
            data,
            spec.train,
            _made_from(spec, digest),
            prepare=lambda targets: {"rows": {"prompt": targets["prompt"]}},
        )
        with closing(fit(trainer, out / "parts" / f"{_STAGE}.pt", stop=stop)) as steps:
            for progress in steps:
                if report:
                    report(_STAGE, progress, spec.train.steps)
        if stop is not None and stop.agreed:
            return None
        with trainer.ema.applied(student):
            return write_lora(student, spec.teacher, out)


def _network_of(model: Model, folder: str) -> Any:
    from ...diffusers.export import network_of

    network = network_of(model.denoiser)
    if dict(getattr(network, "config", {})).get("guidance_embeds"):
        raise ValueError(
            f"{folder}: its network takes the guidance scale as an input (guidance_scale of the "
            "pipeline), so it is distilled already; distil a pipeline that is guided by two passes"
        )
    if not hasattr(network, "add_adapter"):
        raise ValueError(
            f"{folder}: its network is a {type(network).__name__}, which takes no LoRA; distil it "
            "whole (without --lora)"
        )
    return network


def _samples(model: Model, spec: LoRA, watch: Callable[[int, int], None] | None) -> InMemory:
    """Return samples of the teacher, with the index of the prompt of each."""
    at = [i % len(spec.prompts) for i in range(spec.samples)]
    found = []
    for first in range(0, spec.samples, 8):
        rows = range(first, min(first + 8, spec.samples))
        request = model.request(
            [spec.prompts[at[i]] for i in rows],
            guidance=spec.guidance,
            seeds=[spec.seed + i for i in rows],
            steps=spec.steps,
        )
        last = None
        for state in model.states(request):
            last = state.x
        if watch:
            watch(rows[-1] + 1, spec.samples)
        assert last is not None
        found.append(last.float().cpu())
    names = tuple(str(i) for i in range(len(spec.prompts)))
    return InMemory(
        x=torch.cat(found).clone(),
        targets={"prompt": torch.tensor(at)},
        columns={"prompt": Column(kind="class", classes=names)},
    )


def _made_from(spec: LoRA, digest: str) -> dict[str, object]:
    return {
        "guidance": spec.guidance,
        "prompts": list(spec.prompts),
        "rank": spec.rank,
        "samples": spec.samples,
        "sampling steps": spec.steps,
        "seed of the samples": spec.seed,
        "pipeline (its weights)": digest,
    }


def write_lora(student: Adapted, pipeline: str, out: Path) -> Path:
    """Write a LoRA as the pipeline's class does, and return the file.

    Raises:
        OSError: it cannot be written.
    """
    from peft import get_peft_model_state_dict

    import diffusers

    index = Path(pipeline) / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    kind: Any = getattr(diffusers, str(name), None)
    if not hasattr(kind, "save_lora_weights"):
        raise ValueError(f"{pipeline}: a {name} loads no LoRA in Diffusers {diffusers.__version__}")
    part = "unet" if type(student.network).__name__.startswith("UNet") else "transformer"
    with name_write_errors(out / "pytorch_lora_weights.safetensors"):
        kind.save_lora_weights(
            out, **{f"{part}_lora_layers": get_peft_model_state_dict(student.network)}
        )
    return out / "pytorch_lora_weights.safetensors"
