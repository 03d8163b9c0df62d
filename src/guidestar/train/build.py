"""From a recipe to what trains: networks, objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge.diffusers import denoiser as bridged
from ..bridge.encoders import read_text
from ..bridge.schedulers import Process
from ..data._core import Column, Source, Targets
from ..draw import Draw
from ..levels import VE, VP, Flow
from ..models import networks
from ..models.classifier import Classifier
from ..models.conditional import ConditionalModel
from ..models.conditions import ClassEncoder, Conditions, LabelEncoder, VectorEncoder
from . import classification as supervised
from ._core import Objective
from .denoising import Conditional, Denoising
from .recipe import PARTS, ClassifierPart, ConditionSpec, NetworkPart, Recipe
from .times import LogitNormal, UniformTime
from .weighting import EDM, MinSNR, Sigmoid, SNRPlusOne, Uniform


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a part trains.

    Args:
        module: the network, fresh.
        objective: its loss.
        prepare: turns what is known of a batch into the objective's target.
    """

    module: nn.Module
    objective: Objective
    prepare: Callable[[Targets], Any]


# --- the noise ---


def process(recipe: Recipe) -> Process:
    """Return the schedule, and what the network is to predict."""
    s, predicts = recipe.schedule, recipe.predicts()
    if s.kind == "edm":
        return Process(schedule=VE(t_min=s.sigma_min, t_max=s.sigma_max), predicts="edm", sigma_data=s.sigma_data)
    if s.kind == "flow":
        return Process(schedule=Flow(shift=s.shift), predicts=predicts, time_scale=float(s.num_train_timesteps))  # type: ignore[arg-type]
    if s.beta_schedule == "squaredcos_cap_v2":
        table = VP.cosine(s.num_train_timesteps)
    else:
        make = VP.linear if s.beta_schedule == "linear" else VP.scaled_linear
        table = make(s.num_train_timesteps, s.beta_start, s.beta_end)
    return Process(schedule=table.zero_terminal_snr() if s.zero_terminal_snr else table, predicts=predicts)  # type: ignore[arg-type]


def scheduler_config(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the Diffusers scheduler that says the same."""
    s, predicts = recipe.schedule, recipe.predicts()
    if s.kind == "edm":
        return {"_class_name": "EDMEulerScheduler", "sigma_min": s.sigma_min, "sigma_max": s.sigma_max, "sigma_data": s.sigma_data, "prediction_type": "epsilon"}
    if s.kind == "flow" and predicts == "velocity":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": s.num_train_timesteps, "shift": s.shift}
    kind = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[predicts]
    if s.kind == "flow":
        flow = {"use_flow_sigmas": True, "flow_shift": s.shift}
        return {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": s.num_train_timesteps, "prediction_type": kind, **flow}
    table = {k: getattr(s, k) for k in ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end")}
    zero = {"rescale_betas_zero_snr": True} if s.zero_terminal_snr else {}
    return {"_class_name": "DDPMScheduler", **table, "prediction_type": kind, "clip_sample": False, **zero}


def denoising(recipe: Recipe) -> Denoising:
    """Return the objective of a denoiser."""
    p, o, levels = process(recipe), recipe.objective, recipe.levels
    times = LogitNormal(mean=levels.mean, std=levels.std, data_std=levels.data_std) if levels.kind == "logit-normal" else UniformTime()
    weightings = {
        "uniform": lambda: Uniform(space="x0" if p.predicts == "edm" else p.predicts),
        "min-snr": lambda: MinSNR(gamma=o.gamma),
        "snr+1": SNRPlusOne,
        "edm": lambda: EDM(sigma_data=recipe.schedule.sigma_data),
        "sigmoid": lambda: Sigmoid(bias=o.bias),
    }
    return Denoising(schedule=p.schedule, levels=times, weighting=weightings[o.weighting or ("edm" if p.predicts == "edm" else "uniform")]())


# --- networks ---


def told(recipe: Recipe, columns: Mapping[str, Column]) -> dict[str, ConditionSpec]:
    """Return the conditions of the model: what the recipe names, or every column.

    Raises:
        ValueError: the recipe names a column that the data have not.
    """
    chosen = {name: ConditionSpec() for name in columns} if recipe.conditions is None else recipe.conditions
    strange = [name for name in chosen if name not in columns]
    if strange:
        raise ValueError(f"the recipe's condition {strange[0]!r} is not a column of the data, which {'are ' + ', '.join(columns) if columns else 'have none'}")
    return chosen


def build(recipe: Recipe, part: str, source: Source) -> Built:
    """Make a part's fresh network (weights from the recipe's seed), its objective, and its target.

    Raises:
        ValueError: network, conditions and data do not go together.
    """
    torch.manual_seed(recipe.seed + PARTS.index(part))
    spec = getattr(recipe, part)
    if isinstance(spec, NetworkPart):
        return _build_model(recipe, spec, source)
    return _build_classifier(recipe, spec, source, noise_aware=part == "classifier")


def _build_model(recipe: Recipe, spec: NetworkPart, source: Source) -> Built:
    specs, p = told(recipe, source.columns), process(recipe)
    columns = {name: source.columns[name] for name in specs}
    texts = {name: read_text(Path(_encoder(name, s))) for name, s in specs.items() if columns[name].kind == "text"}
    widths = {t.width for t in texts.values()}
    if len(widths) > 1:
        raise ValueError(f"the text encoders of one model must be of one width, not {sorted(widths)}")
    embedded = any(c.kind != "text" for c in columns.values())
    net = _network(spec, source.shape, columns, embedded=embedded, text_width=next(iter(widths), None))
    encoder = Conditions({name: texts[name] if name in texts else _encode(columns[name], name, net, source) for name in specs})
    denoiser = bridged(net, p)
    rates = {name: spec.condition_dropout if s.dropout is None else s.dropout for name, s in specs.items()}
    objective = Conditional(denoising=denoising(recipe), dropout=rates, joint=recipe.joint_dropout)
    return Built(module=ConditionalModel(denoiser, encoder), objective=objective, prepare=encoder.rows)


def _encoder(name: str, spec: ConditionSpec) -> str:
    if spec.encoder is None:
        raise ValueError(f'the condition {name!r} is text: say which CLIP encodes it, conditions.{name}.encoder = "folder with text_encoder/ and tokenizer/"')
    return spec.encoder


def _network(spec: NetworkPart, shape: tuple[int, ...], columns: Mapping[str, Column], *, embedded: bool, text_width: int | None) -> nn.Module:
    image = len(shape) == 3
    if spec.network == "unet":
        if not image or shape[1] != shape[2] or shape[1] % 2 ** (len(spec.widths or ()) - 1):
            halvings = len(spec.widths or ()) - 1
            raise ValueError(
                f'a unet of {halvings + 1} widths halves square images {halvings} times, which samples of {list(shape)} do not allow; use other widths, or network = "sequence"'
            )
        return networks.unet(
            size=shape[1], channels=shape[0], widths=spec.widths or (), layers=spec.layers, groups=spec.groups, head=spec.head, embedded=embedded, text_width=text_width
        )
    if spec.network == "sequence":
        if image:
            raise ValueError(f'network = "sequence" is for vectors and sequences [T, C], not for samples of {list(shape)}')
        from ..models.sequence import SequenceTransformer

        more = {} if text_width is None else {"cross_attention_dim": text_width}
        length = None if len(shape) == 1 else shape[0]
        return SequenceTransformer(channels=shape[-1], length=length, width=spec.width, depth=spec.layers, heads=spec.heads, patch=spec.patch, **more)
    if ":" in spec.network:
        return networks.from_callable(spec.network, spec.config)
    return networks.own_dropout_off(networks.from_diffusers(spec.network, _filled(spec, shape, columns, embedded, text_width)))


def _filled(spec: NetworkPart, shape: tuple[int, ...], columns: Mapping[str, Column], embedded: bool, text_width: int | None) -> dict[str, Any]:
    """Add to the settings of a Diffusers network what the data determine."""
    config: dict[str, Any] = {"in_channels": shape[0], "sample_size": shape[-1]}
    if spec.network.startswith("UNet2D"):
        config |= {"out_channels": shape[0]} | ({"class_embed_type": "identity"} if embedded else {})
        config |= {} if text_width is None else {"cross_attention_dim": text_width}
    if spec.network == "DiTTransformer2DModel":
        config |= {"out_channels": shape[0], "num_embeds_ada_norm": max([len(c.classes) for c in columns.values()] or [1])}
    return {**config, **spec.config}


def _encode(column: Column, name: str, net: nn.Module, source: Source) -> nn.Module:
    if type(net).__name__ == "DiTTransformer2DModel":
        if column.kind != "class":
            raise ValueError(f"DiT is told a class, not the {column.kind} {name!r}; leave it out of the conditions, or use another network")
        return LabelEncoder(column.classes)
    width = _condition_width(net)
    if column.kind == "class":
        return ClassEncoder(column.classes, width)
    mean, std = _statistics(source, name, column.width)
    return VectorEncoder(column.width, width, mean, std)


def _condition_width(net: nn.Module) -> int:
    known = getattr(net, "condition_width", None)
    if isinstance(known, int):
        return known
    blocks = getattr(net, "config", {}).get("block_out_channels")
    if blocks:
        return 4 * blocks[0]
    raise ValueError(f"{type(net).__name__} does not say how wide the embedding of a condition should be; give it an attribute condition_width")


def _statistics(source: Source, name: str, width: int, most: int = 4096) -> tuple[list[float], list[float]]:
    if source.size is None:
        return [0.0] * width, [1.0] * width
    rows = torch.linspace(0, source.size - 1, min(most, source.size)).long().unique().tolist()
    values = torch.as_tensor(source.batch(rows, Draw(rows))[1][name]).double()
    return values.mean(0).tolist(), values.std(0, correction=0).clamp_min(1e-8).tolist()


def _build_classifier(recipe: Recipe, spec: ClassifierPart, source: Source, *, noise_aware: bool) -> Built:
    name, column = judged(spec, source.columns)
    p, times = process(recipe), denoising(recipe).levels
    what: dict[str, Any] = {"classes": column.classes}
    if column.kind == "vector":
        centre, spread = _statistics(source, name, column.width)
        what |= {"outputs": column.width, "centre": centre, "spread": spread}
    shared = {"widths": spec.widths, "layers": spec.layers, "groups": 1 if len(source.shape) == 1 else spec.groups, "dropout": spec.dropout, "noise_aware": noise_aware}
    channels = source.shape[0] if len(source.shape) == 3 else source.shape[-1]
    if len(source.shape) == 3:
        kind: Any = Classifier
    else:
        from ..models.sequence_classifier import SequenceClassifier as kind
    net = kind(**what, channels=channels, **shared)
    if not noise_aware:
        if column.kind != "class":
            raise ValueError(f"a judge tells classes; {name!r} is a {column.kind}")
        objective: Objective = supervised.Classification(shift=spec.shift)
    else:
        objective = (supervised.NoisyClassification if column.kind == "class" else supervised.NoisyRegression)(schedule=p.schedule, levels=times)
    return Built(module=net, objective=objective, prepare=lambda targets: targets[name])


def judged(spec: ClassifierPart, columns: Mapping[str, Column]) -> tuple[str, Column]:
    """Return the column that a classifier tells.

    Raises:
        ValueError: there is no such column, or none that can be told.
    """
    fit = [n for n, c in columns.items() if c.kind != "text" and (spec.column is None or n == spec.column)]
    if not fit:
        wanted = f"no class or vector {spec.column!r}" if spec.column else "no classes or vectors to tell"
        raise ValueError(f"the data have {wanted}; their columns are {', '.join(f'{n} ({c.kind})' for n, c in columns.items()) or 'none'}")
    return fit[0], columns[fit[0]]


def memory(module: nn.Module, settings: Any, shape: tuple[int, ...]) -> dict[str, float]:
    """Estimate what a training holds, in MB: weights, gradients, two moments of AdamW, averages; and a batch of data."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters()) - trained
    size = 8 if settings.precision == "float64" else 4
    copies = 4 + 1 + len(settings.power)
    return {"weights and optimiser": (trained * copies + frozen) * size / 1e6, "a batch of data": settings.batch * math.prod(shape) * size / 1e6}


@torch.no_grad()
def activations(built: Built, source: Source, dtype: torch.dtype = torch.float32) -> float:
    """Count the outputs of all layers for one sample, in MB: about what a sample adds to memory in training."""
    total, handles = [0], []

    def count(module: nn.Module, given: Any, out: Any) -> None:
        total[0] += out.numel() * out.element_size() if isinstance(out, Tensor) else 0

    for module in built.module.modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(count))
    draw = Draw([0])
    x, targets = source.batch([0], draw)
    try:
        built.objective(built.module, x.to(dtype), built.prepare(targets), draw)
    finally:
        for handle in handles:
            handle.remove()
    return total[0] / 1e6
