"""Read networks from folders as Diffusers writes them: config.json and safetensors, never a
pickle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from ...io.documents import (
    as_value_error,
    check_values,
    json_object,
    read_json,
    shown,
    text,
)
from ..objects import Config
from .building import _M, build_module, check_numbers
from .settings import check_network, check_own
from .weights_files import STEM, shards_of, weights_file

Rename = Callable[[_M, dict[str, Tensor]], dict[str, Tensor]]
"""Renames the tensors of a file, given the module that they are for."""


def network_folder(folder: str | Path) -> Path:
    """Find the denoising network of a Diffusers folder: unet/, transformer/, or the folder itself.

    Raises:
        ValueError: there is none, or no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    found = next(
        (
            f
            for f in (folder / "unet", folder / "transformer", folder / "network", folder)
            if (f / "config.json").is_file()
        ),
        None,
    )
    if found is None:
        raise ValueError(
            f"{folder}: holds no denoising network; expected unet/config.json, "
            "transformer/config.json or config.json"
        )
    return found


def read_network(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> ModelMixin:
    """Read the denoising network of a Diffusers folder: unet/, transformer/, or the folder itself.

    Args:
        folder: as Diffusers' ``save_pretrained`` writes it, of a pipeline or of the network alone.
        dtype: of its parameters, whatever the file holds.

    Returns:
        The network in evaluation mode, its parameters not asking for gradients.

    Raises:
        ValueError: as `read_module`, or the class is not a denoising network.
    """
    return read_module(network_folder(folder), dtype=dtype)


def read_module(
    folder: str | Path,
    *,
    known: Mapping[str, type[ModelMixin]] | None = None,
    dtype: torch.dtype = torch.float32,
    trust: bool = False,
) -> Any:
    """Build the class that ``config.json`` names, and fill it with the folder's safetensors.

    Args:
        folder: holds config.json and diffusion_pytorch_model.safetensors, or its shards, or a
            variant (`weights_file`).
        known: classes by name that are not Diffusers' own.
        dtype: of the parameters, whatever the file holds.
        trust: import and call the code that ``config.json`` names as "module:callable".

    Returns:
        The module in evaluation mode, its parameters not asking for gradients.

    Raises:
        ValueError: one line that names the file: an unknown class, settings it refuses, a corrupt
            file, pickled weights only, or the first tensor that is missing, unexpected or
            misshapen.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    config = read_json(config_file)
    if "callable" in config:
        module = _build_own(config_file, config, trust)
        file = weights_file(folder)
        fill(module, file, read_tensors(file), dtype)
        return module
    return _build(config_file, config, known or {}, dtype)


def _build(
    file: Path, config: Config, known: Mapping[str, type[ModelMixin]], dtype: torch.dtype
) -> ModelMixin:
    cls = _find(file, config.get("_class_name"), config.get("norm_type"), known)
    assert issubclass(cls, ConfigMixin)  # as all of Diffusers' and our own networks are
    check_own(file, config)
    check_network(file, config)
    given = {**config, "_class_name": cls.__name__}
    # Whatever a constructor trips over, it is the settings that are wrong.
    refusal = f"{file}: {cls.__name__} refuses these settings"
    # Checkpoints from before Diffusers 0.15 name their attention's projections otherwise.
    old = lambda module, tensors: module._fix_state_dict_keys_on_load(tensors) or tensors
    make = lambda: cast(ModelMixin, cls.from_config(given))
    return build_filled(file, given, make, refusal, dtype, names=old)


def build_filled(
    file: Path,
    settings: Config,
    make: Callable[[], _M],
    refusal: str,
    dtype: torch.dtype,
    *,
    stem: str = STEM,
    names: Rename[_M] = lambda _, tensors: tensors,
) -> _M:
    """Build a module from the settings in ``file``, and fill it with the weights in that folder.

    The weights are held against the module's shapes before it takes any memory.

    Args:
        file: where the settings were found.
        settings: they are.
        make: calls the constructor.
        refusal: the beginning of the message where that fails.
        dtype: of the parameters.
        stem: how the file of weights is called (`weights_file`).
        names: of the module and the tensors as read, renames tensors.

    Raises:
        ValueError: as `build`, `weights_file`, `read_tensors` and `fill`.
    """
    check_numbers(file, settings)
    weights: list[tuple[Path, dict[str, Tensor]]] = []

    def check_fit(sketch: _M) -> None:
        found = weights_file(file.parent, stem)
        tensors = OrderedDict(read_tensors(found))
        with as_value_error(f"{found}: its tensors do not fit the settings in {file.name}"):
            weights[:] = [(found, names(sketch, tensors))]
        _check(found, weights[0][1], sketch.state_dict())

    module = build_module(make, refusal, dtype, check_fit)
    if not weights:
        check_fit(module)
    fill(module, *weights[0], dtype)
    return module


def _build_own(file: Path, config: Config, trust: bool) -> nn.Module:
    from ...networks.from_config import from_callable

    if not trust:
        raise ValueError(
            f"{file}: the network is made by the code {shown(config['callable'])}, which is only "
            "run where you trust it: load(…, trust=True), --trust"
        )
    check_values(file, config, {"callable": text, "config": json_object})
    with as_value_error(f"{file}: the code {shown(config['callable'])} fails"):
        return from_callable(config["callable"], dict(config.get("config", {})))


# What the first DiT and PixArt folders were written as.
_RENAMED = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}


def _find(
    file: Path, name: object, norm: object, known: Mapping[str, type[ModelMixin]]
) -> type[ModelMixin]:
    import diffusers

    name = (
        _RENAMED.get((name, norm), name)
        if isinstance(name, str) and isinstance(norm, str)
        else name
    )
    found = (known.get(name) or getattr(diffusers, name, None)) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ValueError(
            f"{file}: {shown(name)} (_class_name) is not a network of this Diffusers version "
            f"({diffusers.__version__})"
        )
    return found


def encoder_settings(file: Path) -> Config:
    """Read the settings of a text or image encoder, without those that name code to be fetched, or
    what a call returns.

    Raises:
        ValueError: as `read_json`.
    """
    return _of_sizes(read_json(file))


_LEFT = ("auto_map", "output_hidden_states", "output_attentions", "return_dict", "use_return_dict")


def _of_sizes(settings: Config) -> Config:
    kept = {k: v for k, v in settings.items() if "attn_implementation" not in k and k not in _LEFT}
    return {k: _of_sizes(v) if isinstance(v, dict) else v for k, v in kept.items()}


def fill(module: nn.Module, file: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give ``module`` its tensors and ``dtype``, for evaluation without gradients of its
    parameters.

    Raises:
        ValueError: the first tensor that is missing, unexpected or misshapen; ``file`` is named.
    """
    _check(file, tensors, module.state_dict())
    module.load_state_dict(tensors)
    nn.Module.to(module, dtype).eval().requires_grad_(False)


def read_tensors(file: Path) -> OrderedDict[str, Tensor]:
    """Read every tensor of a file, or of the shards that an index names; each from the shard that
    the index names.

    Raises:
        ValueError: a file is missing, truncated or corrupt, or holds other tensors than the index
            lists; it is named.
    """
    if file.suffix != ".json":
        return OrderedDict(read_safetensors(file))
    shards, found = shards_of(file), OrderedDict[str, Tensor]()
    for shard in sorted(set(shards.values())):
        held = read_safetensors(file.parent / shard)
        if lost := next(
            (name for name, home in shards.items() if home == shard and name not in held), None
        ):
            raise ValueError(
                f"{file.parent / shard}: the tensor {lost!r} is missing, which {file.name} says "
                "is there"
            )
        found.update(
            {name: tensor for name, tensor in held.items() if shards.get(name, shard) == shard}
        )
    return found


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read every tensor of a file.

    Raises:
        ValueError: the file is missing, truncated or corrupt; it is named.
    """
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    with as_value_error(f"{file}: truncated or corrupt, not readable as safetensors"):
        return load_file(file)


def _check(file: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, like in wanted.items():
        if name not in tensors:
            raise ValueError(f"{file}: the tensor {name!r} is missing")
        if tensors[name].shape != like.shape:
            raise ValueError(
                f"{file}: the tensor {name!r} has the shape {tuple(tensors[name].shape)}, but "
                f"the network expects {tuple(like.shape)}"
            )
        if tensors[name].is_floating_point() != like.is_floating_point():
            raise ValueError(
                f"{file}: the tensor {name!r} holds {tensors[name].dtype}, but the network "
                f"expects {like.dtype}"
            )
    unexpected = next((name for name in tensors if name not in wanted), None)
    if unexpected is not None:
        raise ValueError(
            f"{file}: the tensor {unexpected!r} is unexpected; the network has none of that name"
        )
