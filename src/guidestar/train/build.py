"""From a recipe to what trains: networks, objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge.clip import find_text
from ..bridge.diffusers import denoiser as bridged
from ..bridge.encoders import TextEncoder, is_masked, read_tokenizer
from ..bridge.schedulers import Process
from ..data._core import Column, Source, Targets
from ..draw import Draw
from ..files import whole_or_not
from ..levels import VE, VP, Flow
from ..models import networks
from ..models.classifier import Classifier
from ..models.clip import CLIP, make_clip, make_tokenizer, make_vision
from ..models.conditional import ConditionalModel
from ..models.conditions import ClassEncoder, Conditions, LabelEncoder, VectorEncoder
from ..models.lean import plain_attention
from . import classification as supervised
from ._core import Objective
from .contrastive import Contrastive
from .denoising import Conditional, Denoising
from .parts import PARTS, ClassifierPart, CLIPPart, NetworkPart, VisionPart
from .recipe import Recipe
from .tables import ConditionSpec
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


def build(recipe: Recipe, part: str, source: Source, out: Path | None = None) -> Built:
    """Make a part's fresh network (weights from the recipe's seed), its objective, and its target.

    Args:
        recipe, part, source: what to make, of which data.
        out: where tokenizers that were learned from the captions are kept, from the first time on.

    Raises:
        ValueError: network, conditions and data do not go together.
    """
    torch.manual_seed(recipe.seed + PARTS.index(part))
    spec = getattr(recipe, part)
    if isinstance(spec, NetworkPart):
        return _build_model(recipe, spec, source, out)
    if isinstance(spec, CLIPPart):
        return _contrastive(_build_clip(spec, part, source, out), Contrastive(shift=spec.shift), source)
    if isinstance(spec, VisionPart):
        return _build_noisy_clip(recipe, spec, source, out)
    return _build_classifier(recipe, spec, source, noise_aware=part == "classifier")


def _build_clip(spec: CLIPPart, part: str, source: Source, out: Path | None) -> CLIP:
    if len(source.shape) != 3 or source.shape[0] != 3 or source.shape[1] != source.shape[2] or source.shape[1] % spec.patch:
        raise ValueError(f"CLIP is trained on square pictures of 3 channels, cut into patches of {spec.patch}; these are {list(source.shape)}")
    sizes = spec.model_dump(exclude={"vocabulary", "length", "shift", "train"})
    clip = make_clip(_tokenizer(spec, part, source, out), size=source.shape[1], **sizes)
    if not torch.cuda.is_available():  # where few tokens are compared, plain products are faster than the CPU's fused kernel
        clip.text.set_attn_implementation("eager")
        clip.vision.tower.set_attn_implementation("eager")
    return clip


def _tokenizer(spec: CLIPPart, part: str, source: Source, out: Path | None) -> Any:
    """Learn a tokenizer from the captions, or take up the one that was: learning it again may part with ties otherwise."""
    folder = out / "tokenizers" / part if out else None
    if folder is None or not folder.is_dir():
        made = make_tokenizer(captions(source), vocabulary=spec.vocabulary, length=spec.length)
        if folder is None:
            return made
        with whole_or_not(folder) as beside:
            made.save_pretrained(beside)
    return read_tokenizer(folder)


def text_column(source: Source) -> str:
    """Return the column of captions.

    Raises:
        ValueError: there is none.
    """
    found = next((n for n, c in source.columns.items() if c.kind == "text"), None)
    if found is None:
        raise ValueError(f"CLIP needs captions; the data's columns are {', '.join(f'{n} ({c.kind})' for n, c in source.columns.items()) or 'none'}")
    return found


def captions(source: Source, most: int = 20_000) -> list[str]:
    """Return captions of the first samples; where a sample has several, those of eight draws."""
    name, found = text_column(source), {}
    rows = list(range(min(source.size or most, most)))
    for round_ in range(8 if source.size is not None else 1):
        found |= dict.fromkeys(source.batch(rows, Draw(rows, round_))[1][name])
    return list(found)


def said(source: Source, rows: Sequence[int], *, shortest: bool = False) -> list[str]:
    """Return the first caption of each row, which asks for the picture, or the shortest, which names it."""
    name = text_column(source)
    while not hasattr(source, "targets"):
        rows = [source.kept[r] for r in rows]  # type: ignore[attr-defined]
        source = source.source  # type: ignore[attr-defined]
    held = source.targets[name]  # type: ignore[attr-defined]
    every = [(held[r],) if isinstance(held[r], str) else held[r] for r in rows]
    return [min(captions, key=len) if shortest else captions[0] for captions in every]


def _contrastive(clip: CLIP, objective: Contrastive, source: Source) -> Built:
    name = text_column(source)
    return Built(module=clip, objective=objective, prepare=lambda targets: clip.tokens(targets[name]))  # type: ignore[arg-type]


def _build_noisy_clip(recipe: Recipe, spec: VisionPart, source: Source, out: Path | None) -> Built:
    assert recipe.clip is not None  # the recipe was checked
    clip = _build_clip(recipe.clip, "clip", source, out)
    sizes = spec.model_dump(exclude={"shift", "train"})
    clip.vision = make_vision(size=source.shape[1], embed=recipe.clip.embed, noise_aware=True, **sizes)
    if not torch.cuda.is_available():
        clip.vision.tower.set_attn_implementation("eager")
    clip.text.requires_grad_(False)
    objective = Contrastive(shift=spec.shift, schedule=process(recipe).schedule, levels=denoising(recipe).levels)
    return _contrastive(clip, objective, source)


def take_from_clip(module: Any, clip: CLIP) -> None:
    """Give a fresh part what it has of the trained ``clip``: the text tower, and of a noise-aware one the image tower and scale.

    Of a model, its encoder's text tower.
    """
    if isinstance(module, CLIP):
        module.text.load_state_dict(clip.text.state_dict())
        module.log_scale.data.copy_(clip.log_scale.data)
        own, given = module.vision.tower.state_dict(), clip.vision.tower.state_dict()
        if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in given.items()}:
            module.vision.tower.load_state_dict(given)
        return
    for part in module.encoder.parts.values():
        if isinstance(part, TextEncoder):
            part.text.load_state_dict(clip.text.state_dict())


def uses_clip(recipe: Recipe, part: str) -> bool:
    """Tell whether a part starts from the recipe's own trained CLIP."""
    own = any(c.encoder == "clip" for c in (recipe.conditions or {}).values())
    return part == "noisy_clip" or (own and isinstance(getattr(recipe, part), NetworkPart))


def _build_model(recipe: Recipe, spec: NetworkPart, source: Source, out: Path | None) -> Built:
    specs, p = told(recipe, source.columns), process(recipe)
    columns = {name: source.columns[name] for name in specs}
    texts = {name: _text(recipe, name, s, source, out) for name, s in specs.items() if columns[name].kind == "text"}
    widths = {t.width for t in texts.values()}
    if len(widths) > 1:
        raise ValueError(f"the text encoders of one model must be of one width, not {sorted(widths)}")
    embedded = any(c.kind != "text" for c in columns.values())
    net = _network(spec, source.shape, columns, embedded=embedded, text_width=next(iter(widths), None))
    if not torch.cuda.is_available() and spec.train.precision != "float64":  # its softmax is in float32
        plain_attention(net)
    for text in texts.values():
        text.mask = is_masked(net)
    encoder = Conditions({name: texts[name] if name in texts else _encode(columns[name], name, net, source) for name in specs})
    denoiser = bridged(net, p)
    rates = {name: spec.condition_dropout if s.dropout is None else s.dropout for name, s in specs.items()}
    objective = Conditional(denoising=denoising(recipe), dropout=rates, joint=recipe.joint_dropout)
    return Built(module=ConditionalModel(denoiser, encoder), objective=objective, prepare=encoder.rows)


def _text(recipe: Recipe, name: str, spec: ConditionSpec, source: Source, out: Path | None) -> TextEncoder:
    if spec.encoder is None:
        raise ValueError(f'the condition {name!r} is text: say which CLIP encodes it, conditions.{name}.encoder = "clip" (the recipe\'s own), or a name or folder')
    if spec.encoder == "clip" and recipe.clip is not None:
        clip = _build_clip(recipe.clip, "clip", source, out)
        return TextEncoder(clip.text.requires_grad_(False), clip.tokenizer, layer=spec.layer, output=spec.output)
    found = find_text(spec.encoder)
    return TextEncoder(found.text, found.tokenizer, layer=spec.layer, output=spec.output)


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
    if spec.network == "PixArtTransformer2DModel":
        config |= {"out_channels": shape[0], "use_additional_conditions": False, "caption_channels": text_width}
        config |= {"cross_attention_dim": spec.config.get("num_attention_heads", 16) * spec.config.get("attention_head_dim", 72)}
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
