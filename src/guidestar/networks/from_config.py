"""Build networks by configuration: a U-Net for the data, a class of Diffusers, or a callable."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence

from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ..io.documents import JSONObject


def unet(
    *,
    size: int,
    channels: int,
    widths: Sequence[int],
    layers: int,
    groups: int,
    head: int,
    embedded: bool = True,
    text_width: int | None = None,
    beside: int = 0,
) -> ModelMixin:
    """Build a U-Net with attention at its lowest resolution only.

    Args:
        size: pixels of a side.
        channels: of the data.
        widths: channels of each resolution; each further one halves the side.
        layers: residual blocks at each resolution.
        groups: of the group normalisations.
        head: width of an attention head.
        embedded: it takes an embedding, ``class_labels [B, 4·widths[0]]``.
        text_width: it takes ``encoder_hidden_states [B, L, text_width]`` by cross-attention.
        beside: channels of a picture that it takes beside the data's.
    """
    plain = len(widths) - 1
    shared: JSONObject = {
        "sample_size": size,
        "in_channels": channels + beside,
        "out_channels": channels,
        "layers_per_block": layers,
        "block_out_channels": tuple(widths),
        "class_embed_type": "identity" if embedded else None,
        "norm_num_groups": groups,
        "attention_head_dim": head,
    }
    if text_width is None:
        down, up = (
            ("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            ("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        )
        return UNet2DModel(**shared, down_block_types=down, up_block_types=up)
    down, up = (
        ("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
    )
    heads = {
        "attention_head_dim": max(1, widths[-1] // head)
    }  # which this network takes for the number of heads
    return UNet2DConditionModel(
        **{**shared, **heads},
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=text_width,
    )


def from_diffusers(name: str, config: Mapping[str, object]) -> ModelMixin:
    """Build a network class of Diffusers.

    Raises:
        ValueError: there is no such network, or it refuses the settings.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ValueError(
            f"{name!r} is not a network of Diffusers {diffusers.__version__}; write 'unet', "
            "'sequence', 'motion', e.g. 'UNet2DModel', or 'module:callable'"
        )
    unknown = sorted(config.keys() - inspect.signature(found.__init__).parameters.keys())
    if unknown:
        raise ValueError(
            f"{name} has no setting {unknown[0]!r}; see its documentation in Diffusers"
        )
    try:
        return found(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    except Exception as error:
        # Constructors raise many kinds of exceptions, all of them for wrong settings.
        raise ValueError(
            f"{name} refuses these settings ({' '.join(str(error).split())}); correct config"
        ) from error


def from_callable(path: str, config: Mapping[str, object]) -> nn.Module:
    """Call the user's ``module:callable`` and check that it made a network.

    Raises:
        ValueError: the module or the callable is not there, it fails, or it returns something else.
    """
    make = find_callable(path)
    try:
        made = make(**config)
    except TypeError as error:
        raise ValueError(f"{path} refuses its settings ({error}); correct config") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{path} must return a torch.nn.Module, not {type(made).__name__}")
    vars(made)["made_by"] = {"callable": path, "config": dict(config)}
    return made


def find_callable(path: str) -> Callable[..., object]:
    """Find ``module:callable``.

    Raises:
        ValueError: it is not there.
    """
    name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(name), attribute)
    except ImportError as error:
        raise ValueError(
            f"cannot import {name!r} of {path!r} ({error}); is it on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(
            f"the module {name!r} has no {attribute!r}; correct the name after the colon"
        ) from error


def own_dropout_off(net: nn.Module) -> nn.Module:
    """Switch off DiT's dropping of labels: the objective drops them by its random numbers."""
    for module in net.modules():
        if hasattr(module, "token_drop") and hasattr(module, "dropout_prob"):
            setattr(module, "dropout_prob", 0.0)  # noqa: B010  (typed as a tensor or a module)
    return net


def adaln_zero(net: nn.Module) -> nn.Module:
    """Start a DiTTransformer2DModel as its authors do: every block is the identity, and the output
    is 0.

    The layers that make shifts, scales and gates of the condition (adaLN-Zero), and the last one,
    start as 0; Diffusers' class leaves them at random.

    References:
        Scalable Diffusion Models with Transformers, section 3.2, https://arxiv.org/abs/2212.09748
    """
    for name, layer in net.named_modules():
        if name.endswith("norm1.linear") or name in ("proj_out_1", "proj_out_2"):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net
