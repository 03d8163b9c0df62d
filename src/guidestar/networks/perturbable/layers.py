"""The perturbable layers of Diffusers' networks and of our sequence network.

The families are U-Nets, DiT, PixArt, SD3 and Flux. Every processor of a layer of attention calls
``scaled_dot_product_attention`` of its heads. The first call in a layer is changed, so that norms
and rotations of queries, masks, fused projections and joint attention stay as they are. So do the
later calls, in which processors of IP-Adapters (SD3, Flux) let the picture attend to image prompts.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from functools import partial, wraps
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.hooks import Forward, is_compiled, replaced, replacement
from ...core.perturbation import AGAINST, Attention, LayerKind, Rows
from ..motion import MotionBlock, MotionTransformer
from ..sequence import SequenceAttention, SequenceBlock, SequenceTransformer
from .hooks import LayerInputs, intercepted
from .joint_attention import BLOCKS, beside, text_against
from .records import RECORDS, Record, record_of
from .rows import AttentionChange, by_rows, changed_tokens

_UNETS = (UNet2DModel, UNet2DConditionModel)
_JOINT_NETS = (SD3Transformer2DModel, FluxTransformer2DModel)
_KNOWN = (
    *_UNETS,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    *_JOINT_NETS,
    SequenceTransformer,
    MotionTransformer,
)
_OF_SEQUENCES = (SequenceTransformer, MotionTransformer)
_EXACT = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")
"""Processors that compute the same in slices or otherwise, to save memory."""


def layers(net: nn.Module) -> NamedLayers:
    """Return the layers of a network.

    Raises:
        ValueError: the network is of no known family, or parts of it are compiled.
    """
    record = record_of(net)
    if record is None and not isinstance(net, _KNOWN):
        raise ValueError(
            f"the layers of {type(net).__name__} are not known; those of "
            f"{', '.join((*(k.__name__ for k in _KNOWN), *RECORDS))} are"
        )
    if any(map(is_compiled, net.modules())):
        raise ValueError(
            f"a {type(net).__name__} with compiled blocks cannot be perturbed; give the network "
            "before they are compiled"
        )
    return DiffusersLayers(net) if record is None else RecordedLayers(net, record)


class NamedLayers(ABC):
    """Named layers of a network (see `guidestar.core.perturbation.Layers`): names are those of
    ``net.named_modules()``.

    The usual layers are the middle block of a U-Net or of a transformer, and every layer of
    attention to the text. A change lasts as long as its context, and acts on some rows of a call
    (by default all), so that several share one; only contrasted text needs a separate call.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net, self.channels_last = net, isinstance(net, _OF_SEQUENCES)

    def find(self, kind: LayerKind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of layers: those given, or the usual ones.

        Raises:
            ValueError: a name is no such layer, or there is none.
        """
        there = self._all(kind)
        for name in names:
            if name not in there:
                raise ValueError(
                    f"{type(self.net).__name__} has no {_WORDS[kind]} {name!r}; there are "
                    f"{', '.join(there) or 'none'}"
                )
        found = tuple(dict.fromkeys(names)) or tuple(n for n in there if self._usual(kind, n))
        if not found:
            raise ValueError(
                f"{type(self.net).__name__} has no {_WORDS[kind]} "
                f"{'in its middle' if there else 'at all'}; there are "
                f"{', '.join(there) or 'none'}"
            )
        return found

    def list_names(self, kind: LayerKind) -> tuple[str, ...]:
        """Return the names of all layers of one kind."""
        return tuple(self._all(kind))

    @abstractmethod
    def _all(self, kind: LayerKind) -> dict[str, nn.Module]:
        """Return all layers of one kind, by name."""

    @abstractmethod
    def _usual(self, kind: LayerKind, name: str) -> bool:
        """Tell whether a layer is one of the usual ones."""

    @abstractmethod
    def _returns(self, name: str) -> tuple[str, ...]:
        """Return the arguments that a block returns, changed."""

    @abstractmethod
    def _spread(self, rows: Rows, count: int) -> Rows:
        """Return the rows of a layer that has ``count``."""

    @abstractmethod
    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Change the picture's tokens before blocks: ``change(tokens [b, tokens, d])``."""

    @contextmanager
    def attending(
        self, names: Sequence[str], attend: Callable[[Attention], Tensor], rows: Rows | None = None
    ) -> Iterator[None]:
        """Replace self-attention by ``attend``, in the block."""
        with ExitStack() as stack:
            inputs = stack.enter_context(_record_inputs(self.net))
            for name in self.find("attention", names):
                stack.enter_context(_attending(self.net, name, inputs, attend, rows))
            yield

    @contextmanager
    def contrasting(
        self, names: Sequence[str], contrast: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[None]:
        """Replace attention to the text by its ``contrast`` with attention to the text against.

        In joint attention only the picture's tokens change.
        """
        with ExitStack() as stack:
            inputs = stack.enter_context(_record_inputs(self.net))
            found = self.find("cross", names)
            _refuse_image_prompts(self.net)
            if isinstance(self.net, _JOINT_NETS):
                stack.enter_context(beside(self.net, found, inputs, contrast))
            else:
                for name in found:
                    stack.enter_context(_contrasting(self.net, name, inputs, contrast))
            yield

    @contextmanager
    def skipping(self, names: Sequence[str], rows: Rows | None = None) -> Iterator[None]:
        """Let blocks return their input; with ``rows`` they run for all and change the others."""
        with ExitStack() as stack:
            for name in self.find("block", names):
                module = self.net.get_submodule(name)
                stack.enter_context(
                    replaced(module, partial(_skip, self._returns(name), rows, self._spread))
                )
            yield

    @contextmanager
    def silencing(self, names: Sequence[str], rows: Rows | None = None) -> Iterator[None]:
        """Let layers of the exchange of video and sound return zeros, in ``rows`` (None: all)."""
        with ExitStack() as stack:
            for name in self.find("exchange", names):
                module = self.net.get_submodule(name)
                stack.enter_context(replaced(module, partial(_silence, rows)))
            yield


class DiffusersLayers(NamedLayers):
    """The layers of the networks of Diffusers' older families, and of ours of sequences."""

    def _all(self, kind: LayerKind) -> dict[str, nn.Module]:
        return {name: m for name, m in self.net.named_modules() if _IS[kind](m)}

    def _usual(self, kind: LayerKind, name: str) -> bool:
        if kind == "cross":
            return True
        if isinstance(self.net, _UNETS):
            return name.startswith("mid_block.")
        blocks = list(self._all("block"))
        return f"{name}.".startswith(f"{blocks[len(blocks) // 2]}.")

    def _spread(self, rows: Rows, count: int) -> Rows:
        """Return the rows of a layer that has ``count``."""
        return rows

    def _returns(self, name: str) -> tuple[str, ...]:
        """Return the arguments that a block returns, changed."""
        joint = isinstance(self.net.get_submodule(name), BLOCKS)
        return ("encoder_hidden_states", "hidden_states") if joint else ("hidden_states",)

    @contextmanager
    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> Iterator[None]:
        """Change the picture's tokens before blocks: ``change(tokens [b, tokens, d])``."""
        with ExitStack() as stack:
            for name in self.find("block", names):
                stack.enter_context(
                    replaced(self.net.get_submodule(name), partial(_change_input, change, rows))
                )
            yield


class RecordedLayers(NamedLayers):
    """The layers of a network that a record describes (`records.RECORDS`)."""

    def __init__(self, net: nn.Module, record: Record) -> None:
        super().__init__(net)
        self.record = record

    def _all(self, kind: LayerKind) -> dict[str, nn.Module]:
        return {
            name: self.net.get_submodule(name) for name in self.record.list_layers(self.net, kind)
        }

    def _usual(self, kind: LayerKind, name: str) -> bool:
        return kind in ("cross", "exchange") or self.record.usual(self.net, name)

    @property
    def guided_block(self) -> int | None:
        """The number of the block that the network's users leave unattended, if it has that."""
        block = self.record.guided_block
        there = sum(len(blocks.find(self.net)) for blocks in self.record.blocks)
        return block if block is not None and block < there else None

    def _spread(self, rows: Rows, count: int) -> Rows:
        return self.record.spread(rows, count)

    def _returns(self, name: str) -> tuple[str, ...]:
        return self.record.blocks_of(self.net, name).returns

    @contextmanager
    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> Iterator[None]:
        """Change the picture's tokens before blocks: ``change(tokens [b, tokens, d])``."""
        with ExitStack() as stack:
            inputs = stack.enter_context(_record_inputs(self.net))
            for name in self.find("block", names):
                changed = partial(self._change_picture, name, inputs, change, rows)
                stack.enter_context(replaced(self.net.get_submodule(name), changed))
            yield

    def _change_picture(
        self,
        name: str,
        inputs: LayerInputs,
        change: Callable[[Tensor], Tensor],
        rows: Rows | None,
        original: Forward,
    ) -> Forward:
        """Return a block's forward whose picture is changed; where the text is in the same
        sequence, that stays.
        """
        signature, returns = inspect.signature(original), self._returns(name)
        argument = returns[0] if len(returns) == 1 else "hidden_states"

        @wraps(original)
        def forward(*args: object, **kwargs: object) -> object:
            call = signature.bind(*args, **kwargs)
            hidden = call.arguments[argument]
            image = slice(0, hidden.shape[1])
            if len(returns) == 1:
                image = self.record.image(self.net, name, inputs, hidden.shape[1])
            picture = hidden[:, image]
            frames = len(hidden) // len(next(iter(inputs.values()))) if self.record.frames else 1
            whole = picture.unflatten(0, (-1, frames)).flatten(1, 2)  # all frames of a sample
            picture = changed_tokens(whole, change, rows).reshape(picture.shape)
            parts = [hidden[:, : image.start], picture, hidden[:, image.stop :]]
            call.arguments[argument] = torch.cat(parts, 1)
            return original(*call.args, **call.kwargs)

        return forward


def _change_input(
    change: Callable[[Tensor], Tensor], rows: Rows | None, original: Forward
) -> Forward:
    """Return a block's forward whose input tokens are changed."""
    signature = inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        call = signature.bind(*args, **kwargs)
        call.arguments["hidden_states"] = changed_tokens(
            call.arguments["hidden_states"], change, rows
        )
        return original(*call.args, **call.kwargs)

    return forward


def _is_self_attention(m: nn.Module) -> bool:
    return isinstance(m, FluxAttention) or (
        isinstance(m, DiffusersAttention | SequenceAttention) and not m.is_cross_attention
    )


def _is_cross_attention(m: nn.Module) -> bool:
    """Return whether the text of this attention can be exchanged: cross- or joint attention."""
    if not isinstance(m, DiffusersAttention):
        return isinstance(m, FluxAttention) or (
            isinstance(m, SequenceAttention) and m.is_cross_attention
        )
    return m.context_pre_only is not None or (m.is_cross_attention and m.added_kv_proj_dim is None)


def _is_block(m: nn.Module) -> bool:
    """Return whether a module can be skipped, since it adds to its input.

    Residual blocks of U-Nets cannot: they change the width.
    """
    return isinstance(m, (BasicTransformerBlock, SequenceBlock, MotionBlock, *BLOCKS)) or (
        isinstance(m, DiffusersAttention) and m.residual_connection
    )


_IS: Mapping[LayerKind, Callable[[nn.Module], bool]] = {
    "attention": _is_self_attention,
    "cross": _is_cross_attention,
    "block": _is_block,
    "exchange": lambda m: False,
}
_WORDS: Mapping[LayerKind, str] = {
    "attention": "layer of self-attention",
    "cross": "layer of attention to text that can be contrasted",
    "block": "block that can be skipped",
    "exchange": "layer of attention between video and sound",
}


def _at_once(module: nn.Module, original: Forward) -> Forward:
    """Return a forward that computes in one call what the layer's processor computes in slices."""
    if type(getattr(module, "processor", None)).__name__ not in _EXACT or not getattr(
        module, "scale_qk", False
    ):
        return original
    own = copy(module)  # it shares the weights; the layer keeps its processor, for other threads
    setattr(own, "processor", AttnProcessor2_0())  # noqa: B010  (an attribute of the family)
    vars(own).pop("forward", None)
    return own.forward


@contextmanager
def _record_inputs(net: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the network's inputs by name; those of the perturbation are kept from the network."""
    inputs: dict[str, Any] = {}
    signature = inspect.signature(net.forward)

    def record(original: Forward) -> Forward:
        def forward(*args: object, **kwargs: object) -> object:
            against = {k: v for k, v in kwargs.items() if k.startswith(AGAINST)}
            own = {k: v for k, v in kwargs.items() if k not in against}
            inputs.clear()
            inputs.update(**signature.bind(*args, **own).arguments, **against)
            return original(*args, **own)

        return forward

    with replaced(net, record):
        yield inputs


@contextmanager
def _attending(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    attend: Callable[[Attention], Tensor],
    rows: Rows | None,
) -> Iterator[None]:
    module, own = net.get_submodule(name), (attend, rows)
    changes: list[AttentionChange] = getattr(replacement(module), "changes", [])
    with ExitStack() as stack:
        if rows is None or not changes:
            changes = []
            stack.enter_context(
                replaced(module, partial(_change_attention, net, name, inputs, changes))
            )
        changes.append(own)  # beside changes of other rows of the same call
        stack.callback(changes.remove, own)
        yield


def _change_attention(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    changes: list[AttentionChange],
    original: Forward,
) -> Forward:
    """Return a layer's forward in which each change has its rows."""
    module = net.get_submodule(name)
    original, signature = _at_once(module, original), inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        hidden = signature.bind(*args, **kwargs).arguments["hidden_states"]

        def change(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
            record, tokens, here = record_of(net), query.shape[2], changes
            if record is None:
                image = _image(net, inputs, hidden, tokens)
                grid = lambda: _grid(net, inputs, hidden, image.stop - image.start)
            else:
                image = record.image(net, name, inputs, tokens)
                grid = lambda: record.find_grid(net, name, inputs, image.stop - image.start)
                here = record.spread_all(changes, len(query))

            def answer(part: slice, attend: Callable[[Attention], Tensor]) -> Tensor:
                q, k, v = query[part], key[part], value[part]

                def own(mask: Any) -> Any:
                    return (
                        mask[part]
                        if isinstance(mask, Tensor)
                        and mask.ndim == query.ndim
                        and len(mask) == len(query)
                        else mask
                    )

                plain = lambda q: F.scaled_dot_product_attention(
                    q, k, v, *map(own, rest), **{name: own(m) for name, m in more.items()}
                )
                return attend(
                    Attention(
                        query=q, key=k, value=v, image=image, with_query=plain, find_grid=grid
                    )
                )

            return by_rows(here, query, answer)

        return intercepted(name, module, change, lambda: original(*args, **kwargs))

    vars(forward)["changes"] = changes
    return forward


def _image(net: nn.Module, inputs: LayerInputs, hidden: Tensor, tokens: int) -> slice:
    """Find the picture's tokens: after the text in Flux, before it in SD3, after the first token of
    motions, else all tokens.
    """
    if isinstance(net, MotionTransformer):
        return slice(1, tokens + 1)
    if isinstance(net, FluxTransformer2DModel):
        return slice(tokens - inputs["img_ids"].shape[-2], tokens)
    return slice(0, hidden.shape[1] if hidden.ndim == 3 else hidden[0, 0].numel())


def _grid(net: nn.Module, inputs: LayerInputs, hidden: Tensor, tokens: int) -> tuple[int, ...]:
    if isinstance(net, _OF_SEQUENCES):
        return (tokens,)
    if hidden.ndim == 4:
        return hidden.shape[2], hidden.shape[3]
    if isinstance(net, FluxTransformer2DModel):
        height = int(inputs["img_ids"].reshape(-1, inputs["img_ids"].shape[-1])[:, 1].max()) + 1
        return height, tokens // height
    height, width = next(iter(inputs.values())).shape[-2:]
    # The picture shrinks by one factor in both directions; a U-Net rounds up or down, by its
    # padding.
    sizes = [(-(-height // f), -(-width // f)) for f in range(1, max(height, width) + 1)]
    sizes += [(height // f, width // f) for f in range(1, min(height, width) + 1)]
    return next(size for size in sizes if size[0] * size[1] == tokens)


@contextmanager
def _contrasting(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    contrast: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[None]:
    with replaced(
        net.get_submodule(name), partial(_contrast_attention, net, name, inputs, contrast)
    ):
        yield


def _contrast_attention(
    net: nn.Module,
    name: str,
    inputs: LayerInputs,
    contrast: Callable[[Tensor, Tensor], Tensor],
    original: Forward,
) -> Forward:
    """Return a layer's forward that attends to the text against too."""
    module = net.get_submodule(name)
    original, signature = _at_once(module, original), inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        call, found = signature.bind(*args, **kwargs), []

        def keep(*args: Any, **kwargs: Any) -> Tensor:
            found.append(F.scaled_dot_product_attention(*args, **kwargs))
            return found[-1]

        other = signature.bind(*args, **kwargs)
        other.arguments.update(_against(net, inputs, call.arguments["hidden_states"]))
        intercepted(name, module, keep, lambda: original(*other.args, **other.kwargs))
        return intercepted(
            name,
            module,
            lambda *a, **k: contrast(F.scaled_dot_product_attention(*a, **k), found[-1]),
            lambda: original(*args, **kwargs),
        )

    return forward


def _against(net: nn.Module, inputs: LayerInputs, hidden: Tensor) -> dict[str, Tensor | None]:
    """Return the text against as a layer's inputs, mapped by the network, its mask as a bias."""
    states, mask = text_against(net, inputs), inputs.get(f"{AGAINST}encoder_attention_mask")
    project = getattr(net, "caption_projection", None) or getattr(net, "encoder_hid_proj", None)
    record = record_of(net)
    if record is not None and record.text:
        project = net.get_submodule(record.text)
    states = project(states) if project else states
    if isinstance(net, SequenceTransformer):  # it attends by the mask itself
        return {"encoder_hidden_states": states, "attention_mask": mask}
    bias = None if mask is None else ((1 - mask.to(hidden.dtype)) * -10000.0).unsqueeze(1)
    return {"encoder_hidden_states": states, "attention_mask": bias}


def _refuse_image_prompts(net: nn.Module) -> None:
    """Refuse a network whose cross-attention takes pictures together with the text."""
    if (
        getattr(net, "encoder_hid_proj", None) is not None
        and getattr(net, "config").encoder_hid_dim_type != "text_proj"  # noqa: B009
    ):
        raise ValueError(
            f"a {type(net).__name__} that takes pictures with its text (an IP-Adapter's) "
            "cannot be contrasted in its attention to the text; "
            "leave nag out, or take the adapter off first: pipe.unload_ip_adapter()"
        )


def _skip(
    returns: tuple[str, ...],
    rows: Rows | None,
    spread: Callable[[Rows, int], Rows],
    original: Forward,
) -> Forward:
    signature = inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        inputs = signature.bind(*args, **kwargs).arguments
        both = tuple(inputs.get(name) for name in returns)
        given: Any = both[0] if len(returns) == 1 else both
        if rows is None:
            return given
        return _restore_rows(original(*args, **kwargs), given, rows, spread)

    return forward


def _silence(rows: Rows | None, original: Forward) -> Forward:
    @wraps(original)
    def forward(*args: object, **kwargs: object) -> Tensor:
        out: Tensor = original(*args, **kwargs)
        if rows is None:
            return torch.zeros_like(out)
        rows.check(out)
        return rows.put(out, torch.zeros_like(out[rows.slice]))

    return forward


def _restore_rows(done: Any, given: Any, rows: Rows, spread: Callable[[Rows, int], Rows]) -> Any:
    """Return a block's output, with its input in ``rows``; the last joint block outputs no text."""
    if isinstance(given, tuple):
        return tuple(
            None if d is None else _restore_rows(d, g, rows, spread)
            for d, g in zip(done, given, strict=True)
        )
    own = spread(rows, len(done))
    own.check(done)
    return own.put(done, given[own.slice])
