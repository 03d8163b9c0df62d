"""The perturbable layers of Diffusers' networks and of our sequence network.

The families are U-Nets, DiT, PixArt, SD3 and Flux. Every processor of a layer of attention calls
``scaled_dot_product_attention`` of its heads. The first call in a layer is changed, so that norms
and rotations of queries, masks, fused projections and joint attention stay as they are. So do the
later calls, in which processors of IP-Adapters (SD3, Flux) let the picture attend to image prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from inspect import BoundArguments

import torch
from torch import Tensor, nn

from ...core.hooks import Forward, is_compiled
from ...core.perturbation import Attention, LayerKind, Rows
from .blocks import change_input, silence, skip
from .hooks import LayerInputs, recorded_inputs, run_call, with_call
from .joint_attention import BLOCKS, beside
from .kinds import IS_OF_KIND, JOINT_NETS, KIND_WORDS, KNOWN_NETWORKS, OF_SEQUENCES, UNETS
from .records import RECORDS, Record, record_of
from .rows import changed_tokens, layers_replaced
from .self_attention import attending
from .text_attention import contrasting, refuse_image_prompts


def layers(net: nn.Module) -> NamedLayers:
    """Return the layers of a network.

    Raises:
        ValueError: the network is of no known family, or parts of it are compiled.
    """
    record = record_of(net)
    if record is None and not isinstance(net, KNOWN_NETWORKS):
        raise ValueError(
            f"the layers of {type(net).__name__} are not known; those of "
            f"{', '.join((*(k.__name__ for k in KNOWN_NETWORKS), *RECORDS))} are"
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
        self.net, self.channels_last = net, isinstance(net, OF_SEQUENCES)

    def find(self, kind: LayerKind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of layers: those given, or the usual ones.

        Raises:
            ValueError: a name is no such layer, or there is none.
        """
        there = self._all(kind)
        for name in names:
            if name not in there:
                raise ValueError(
                    f"{type(self.net).__name__} has no {KIND_WORDS[kind]} {name!r}; there are "
                    f"{', '.join(there) or 'none'}"
                )
        found = tuple(dict.fromkeys(names)) or tuple(n for n in there if self._usual(kind, n))
        if not found:
            raise ValueError(
                f"{type(self.net).__name__} has no {KIND_WORDS[kind]} "
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
            inputs = stack.enter_context(recorded_inputs(self.net))
            for name in self.find("attention", names):
                stack.enter_context(attending(self.net, name, inputs, attend, rows))
            yield

    @contextmanager
    def contrasting(
        self, names: Sequence[str], contrast: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[None]:
        """Replace attention to the text by its ``contrast`` with attention to the text against.

        In joint attention only the picture's tokens change.
        """
        with ExitStack() as stack:
            inputs = stack.enter_context(recorded_inputs(self.net))
            found = self.find("cross", names)
            refuse_image_prompts(self.net)
            if isinstance(self.net, JOINT_NETS):
                stack.enter_context(beside(self.net, found, inputs, contrast))
            else:
                for name in found:
                    stack.enter_context(contrasting(self.net, name, inputs, contrast))
            yield

    def skipping(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Let blocks return their input; with ``rows`` they run for all and change the others."""
        found = self.find("block", names)
        skips = {n: partial(skip, self._returns(n), rows, self._spread) for n in found}
        return layers_replaced(self.net, skips)

    def silencing(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Let layers of the exchange of video and sound return zeros, in ``rows`` (None: all)."""
        found = self.find("exchange", names)
        return layers_replaced(self.net, dict.fromkeys(found, partial(silence, rows)))


class DiffusersLayers(NamedLayers):
    """The layers of the networks of Diffusers' older families, and of ours of sequences."""

    def _all(self, kind: LayerKind) -> dict[str, nn.Module]:
        return {name: m for name, m in self.net.named_modules() if IS_OF_KIND[kind](m)}

    def _usual(self, kind: LayerKind, name: str) -> bool:
        if kind == "cross":
            return True
        if isinstance(self.net, UNETS):
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

    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Change the picture's tokens before blocks: ``change(tokens [b, tokens, d])``."""
        found = self.find("block", names)
        return layers_replaced(self.net, dict.fromkeys(found, partial(change_input, change, rows)))


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
        found = self.find("block", names)
        with recorded_inputs(self.net) as inputs:
            changes = {n: partial(self._change_picture, n, inputs, change, rows) for n in found}
            with layers_replaced(self.net, changes):
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
        returns = self._returns(name)
        argument = returns[0] if len(returns) == 1 else "hidden_states"

        def answer(call: BoundArguments) -> object:
            hidden = call.arguments[argument]
            image = slice(0, hidden.shape[1])
            if len(returns) == 1:
                image = self.record.image(self.net, name, inputs, hidden.shape[1])
            picture = hidden[:, image]
            frames = len(hidden) // len(next(iter(inputs.values()))) if self.record.frames else 1
            whole = picture.unflatten(0, (-1, frames)).flatten(1, 2)  # all frames of a sample
            picture = changed_tokens(whole, change, rows).reshape(picture.shape)
            parts = [hidden[:, : image.start], picture, hidden[:, image.stop :]]
            return run_call(original, call, {argument: torch.cat(parts, 1)})

        return with_call(original, answer)
