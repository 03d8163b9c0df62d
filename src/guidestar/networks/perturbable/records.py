"""Which layers of Diffusers' newer networks attend to what, by short records of names.

A record lists the blocks of a network: which of their layers are self-attention of the picture (or
video, or sound), which are attention to the text, what a block returns, and where the picture's
tokens are among those that attend to each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ...core.perturbation import LayerKind, Rows
from .hooks import LayerInputs
from .rows import AttentionChange

_HIDDEN, _TEXT = "hidden_states", "encoder_hidden_states"
TokenPlace = Literal["all", "first", "last"]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of one kind.

    Args:
        at: the name of their list, as a pattern.
        attention: their layers of self-attention that can be changed.
        cross: their layers of attention to text that can be contrasted.
        returns: the arguments that a block returns, changed, in the order of its answer.
        place: where the picture's tokens are in its self-attention: they are all tokens, or the
            first or last ones.
        exchange: their layers of attention between video and sound.
        line: whether these tokens are a line (frames, or sound), and not the picture's grid.
        skips: whether such a block can be skipped.
    """

    at: str = "transformer_blocks"
    attention: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    returns: tuple[str, ...] = (_HIDDEN,)
    place: TokenPlace = "all"
    exchange: tuple[str, ...] = ()
    line: tuple[str, ...] = ()
    skips: bool = True

    def find(self, net: nn.Module) -> list[str]:
        """Return the names of these blocks."""
        pattern = re.compile(rf"{self.at}\.\d+")
        return [name for name, _ in net.named_modules() if pattern.fullmatch(name)]

    def list_layers(self, net: nn.Module, kind: LayerKind) -> list[str]:
        """Return the names of their layers of one kind."""
        if kind == "block":
            return self.find(net) if self.skips else []
        layers = {"attention": self.attention, "cross": self.cross, "exchange": self.exchange}[kind]
        names = [f"{block}.{layer}" for block in self.find(net) for layer in layers]
        return [name for name in names if _has(net, name) and not _takes_pictures(net, name)]


GridRule = Callable[[nn.Module, LayerInputs], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The layers of a family of networks.

    Args:
        blocks: of each kind.
        grid: the picture's sizes in tokens, from the network and its inputs.
        middle: how the names of the usual layers begin; by default those of the middle block.
        frames: whether a layer's rows are the frames (or places) of the network's rows.
        text: the module that maps the text to what the blocks attend to, where it is not a
            caption projection.
        guided_block: the number of the block that its users leave unattended (stg).
    """

    blocks: tuple[Blocks, ...]
    grid: GridRule
    middle: str = ""
    frames: bool = False
    text: str = ""
    guided_block: int | None = None

    def list_layers(self, net: nn.Module, kind: LayerKind) -> list[str]:
        """Return the names of the network's layers of one kind."""
        return [name for blocks in self.blocks for name in blocks.list_layers(net, kind)]

    def blocks_of(self, net: nn.Module, name: str) -> Blocks:
        """Return the kind of block that a block or layer belongs to."""
        return next(
            b for b in self.blocks if any(f"{name}.".startswith(f"{n}.") for n in b.find(net))
        )

    def usual(self, net: nn.Module, name: str) -> bool:
        """Tell whether a layer is one of the usual ones."""
        if self.middle:
            return name.startswith(self.middle)
        blocks = [n for b in self.blocks for n in b.find(net)]
        return f"{name}.".startswith(f"{blocks[len(blocks) // 2]}.")

    def image(self, net: nn.Module, name: str, inputs: LayerInputs, tokens: int) -> slice:
        """Return which of the tokens that attend to each other are the picture's."""
        place = self.blocks_of(net, name).place
        if place == "all":
            return slice(0, tokens)
        count = self.count(net, inputs)
        return slice(0, count) if place == "first" else slice(tokens - count, tokens)

    def count(self, net: nn.Module, inputs: LayerInputs) -> int:
        """Return how many tokens the picture has, with the pictures that it refers to."""
        hidden = inputs.get(_HIDDEN)
        packed = isinstance(hidden, Tensor) and hidden.ndim == 3 and "img_ids" in inputs
        packed = packed or inputs.get("img_shapes") is not None
        return inputs[_HIDDEN].shape[1] if packed else math.prod(self.grid(net, inputs))

    def find_grid(
        self, net: nn.Module, name: str, inputs: LayerInputs, tokens: int
    ) -> tuple[int, ...]:
        """Return the sizes of the picture in tokens, in one layer.

        Raises:
            ValueError: its tokens are no grid, as there are further pictures among them.
        """
        if name.rpartition(".")[2] in self.blocks_of(net, name).line:
            return (tokens,)
        grid = _spatial(inputs, tokens) if self.frames else self.grid(net, inputs)
        if math.prod(grid) != tokens:
            raise ValueError(
                f"{name!r} of {type(net).__name__} has {tokens} tokens of pictures, which are not "
                f"those of one picture ({' × '.join(map(str, grid))}), so they cannot be blurred"
            )
        return grid

    def spread(self, rows: Rows, count: int) -> Rows:
        """Return the rows of a layer that are these rows of the network."""
        if not self.frames or count % rows.of:
            return rows
        each = count // rows.of
        return Rows(rows.start * each, rows.stop * each, count)

    def spread_all(self, changes: Sequence[AttentionChange], count: int) -> list[AttentionChange]:
        """Return changes with the rows of a layer that has ``count``."""
        return [
            (attend, None if rows is None else self.spread(rows, count)) for attend, rows in changes
        ]


def _has(net: nn.Module, name: str) -> bool:
    try:
        return net.get_submodule(name) is not None
    except AttributeError:
        return False


def _takes_pictures(net: nn.Module, name: str) -> bool:
    """Tell whether attention to the text gets pictures too, as Wan's from image to video."""
    return name.endswith("attn2") and getattr(_config(net), "image_dim", None) is not None


def _over(sizes: Sequence[int], patch: Any) -> tuple[int, ...]:
    """Return how many patches there are in each direction."""
    own = (patch,) * len(sizes) if isinstance(patch, int) else tuple(patch)
    own = (1,) * (len(sizes) - len(own)) + own
    return tuple(size // p for size, p in zip(sizes, own, strict=True))


def _config(net: nn.Module) -> Any:
    return getattr(net, "config")  # noqa: B009


def _patched(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return the grid of an input ``[B, C, *S]`` in patches."""
    return _over(inputs[_HIDDEN].shape[2:], _config(net).patch_size)


def _patched_film(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return the grid of a video ``[B, C, T, H, W]``, whose patches have a size in time."""
    config = _config(net)
    return _over(inputs[_HIDDEN].shape[2:], (config.patch_size_t, *(config.patch_size,) * 2))


def _frames_first(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return the grid of a video ``[B, T, C, H, W]``."""
    shape, config = inputs[_HIDDEN].shape, _config(net)
    sizes = shape[1], *shape[3:]
    return _over(sizes, (getattr(config, "patch_size_t", None) or 1, *(config.patch_size,) * 2))


def _named_sizes(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    return inputs["num_frames"], inputs["height"], inputs["width"]


def _by_ids(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return the grid of packed tokens that know their row and column."""
    ids = inputs["img_ids"].reshape(-1, inputs["img_ids"].shape[-1])
    height = int(ids[:, 1].max()) + 1
    return height, inputs[_HIDDEN].shape[1] // height


def _by_shapes(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    first = inputs["img_shapes"][0]
    frames, height, width = first[0] if isinstance(first[0], list | tuple) else first
    return (height, width) if frames == 1 else (frames, height, width)


def _of_list(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return the grid of Z-Image's pictures, a list of ``[C, T, H, W]``."""
    first = inputs["x"][0]
    if isinstance(first, list | tuple):
        raise ValueError(
            f"the layers of {type(net).__name__} with pictures beside its own are not known"
        )
    patch = inputs.get("patch_size", 2)
    grid = _over(first.shape[1:], (inputs.get("f_patch_size", 1), patch, patch))
    return grid[1:] if grid[0] == 1 else grid


def _after_text(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    """Return Lumina 2's grid, whose picture follows each text at once.

    Raises:
        ValueError: the texts have different lengths, and so the pictures begin at different places.
    """
    lengths = inputs["encoder_attention_mask"].sum(1)
    if bool((lengths != lengths[0]).any()):
        raise ValueError(
            f"the attention of {type(net).__name__} can be perturbed only where the prompts of a "
            "call have one length; run the passes of this network apart, max_rows=1"
        )
    return _patched(net, inputs)


def _sound(net: nn.Module, inputs: LayerInputs) -> tuple[int, ...]:
    return (inputs[_HIDDEN].shape[-1],)


def _spatial(inputs: LayerInputs, tokens: int) -> tuple[int, int]:
    """Return the sizes of a frame that a U-Net made smaller by one factor in both directions."""
    height, width = next(iter(inputs.values())).shape[-2:]
    sizes = [(-(-height // f), -(-width // f)) for f in range(1, max(height, width) + 1)]
    return next(size for size in sizes if size[0] * size[1] == tokens)


_BOTH, _TURNED = (_HIDDEN, _TEXT), (_TEXT, _HIDDEN)
_WAN = Record(
    blocks=(Blocks(at="blocks", attention=("attn1",), cross=("attn2",)),),
    grid=_patched,
    text="condition_embedder.text_embedder",
)

RECORDS: dict[str, Record] = {
    **dict.fromkeys(
        (
            *("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
            *("SkyReelsV2Transformer3DModel", "ChronoEditTransformer3DModel"),
        ),
        _WAN,
    ),
    "LTXVideoTransformer3DModel": Record(
        blocks=(Blocks(attention=("attn1",), cross=("attn2",)),),
        grid=_named_sizes,
        guided_block=19,
    ),
    "LTX2VideoTransformer3DModel": Record(
        blocks=(
            Blocks(
                attention=("attn1", "audio_attn1"),
                returns=(_HIDDEN, "audio_hidden_states"),
                exchange=("audio_to_video_attn", "video_to_audio_attn"),
                line=("audio_attn1",),
            ),
        ),
        grid=_named_sizes,
        guided_block=29,
    ),
    "HunyuanVideoTransformer3DModel": Record(
        blocks=(
            Blocks(attention=("attn",), returns=_BOTH, place="first"),
            Blocks(
                at="single_transformer_blocks", attention=("attn",), returns=_BOTH, place="first"
            ),
        ),
        grid=_patched_film,
    ),
    "CogVideoXTransformer3DModel": Record(
        blocks=(Blocks(attention=("attn1",), returns=_BOTH, place="last"),), grid=_frames_first
    ),
    "MochiTransformer3DModel": Record(blocks=(Blocks(returns=_BOTH),), grid=_patched),
    "QwenImageTransformer2DModel": Record(
        blocks=(Blocks(attention=("attn",), returns=_TURNED, place="last"),), grid=_by_shapes
    ),
    "ZImageTransformer2DModel": Record(
        blocks=(Blocks(at="layers", attention=("attention",), returns=("x",), place="first"),),
        grid=_of_list,
    ),
    **dict.fromkeys(
        ("Flux2Transformer2DModel", "ChromaTransformer2DModel"),
        Record(
            blocks=(
                Blocks(attention=("attn",), returns=_TURNED, place="last"),
                Blocks(at="single_transformer_blocks", attention=("attn",), place="last"),
            ),
            grid=_by_ids,
        ),
    ),
    **dict.fromkeys(
        ("SanaTransformer2DModel", "SanaVideoTransformer3DModel"),
        Record(blocks=(Blocks(),), grid=_patched),
    ),
    "Lumina2Transformer2DModel": Record(
        blocks=(Blocks(at="layers", attention=("attn",), place="last"),), grid=_after_text
    ),
    "AuraFlowTransformer2DModel": Record(
        blocks=(
            Blocks(
                at="joint_transformer_blocks", attention=("attn",), returns=_TURNED, place="last"
            ),
            Blocks(at="single_transformer_blocks", attention=("attn",), place="last"),
        ),
        grid=_patched,
    ),
    "StableAudioDiTModel": Record(
        blocks=(Blocks(attention=("attn1",), place="last"),), grid=_sound
    ),
    "UNetSpatioTemporalConditionModel": Record(
        blocks=(
            Blocks(at=r".+\.transformer_blocks", attention=("attn1",)),
            Blocks(at=r".+\.temporal_transformer_blocks", attention=("attn1",), line=("attn1",)),
        ),
        grid=lambda net, inputs: (),
        middle="mid_block.",
        frames=True,
    ),
}
"""By the class of the network."""


def record_of(net: object) -> Record | None:
    """Return the record of a network's layers, where there is one."""
    return next((RECORDS[k.__name__] for k in type(net).__mro__ if k.__name__ in RECORDS), None)
