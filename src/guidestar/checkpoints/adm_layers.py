"""The perturbable layers of ADM's U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.hooks import Forward, replaced, replacement
from ..core.perturbation import Attention, LayerKind, Rows
from ..networks.perturbable.rows import AttentionChange, changed_tokens, layers_replaced
from .adm_blocks import SelfAttention

if TYPE_CHECKING:
    from .adm_networks import ADM


class ADMLayers:
    """The layers of attention of an `ADM` by name (see `guidestar.core.perturbation.Layers`).

    The usual one is in the middle block.
    """

    def __init__(self, net: ADM) -> None:
        self.net = net

    def find(self, kind: LayerKind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of layers: those given, or the usual one.

        Raises:
            ValueError: a name is no such layer, or there is none.
        """
        there = (
            []
            if kind in ("cross", "exchange")
            else [n for n, m in self.net.named_modules() if isinstance(m, SelfAttention)]
        )
        unknown = next((n for n in names if n not in there), None)
        if unknown is not None or not there:
            raise ValueError(
                f"ADM has no layer {unknown or 'of attention to a text'!r}; there are "
                f"{', '.join(there) or 'none'}"
            )
        return tuple(dict.fromkeys(names)) or tuple(
            n for n in there if n.startswith("middle_block.")
        )

    def list_names(self, kind: LayerKind) -> tuple[str, ...]:
        """Return the names of all layers of one kind."""
        found = [n for n, m in self.net.named_modules() if isinstance(m, SelfAttention)]
        return () if kind in ("cross", "exchange") else tuple(found)

    @contextmanager
    def attending(
        self, names: Sequence[str], attend: Callable[[Attention], Tensor], rows: Rows | None = None
    ) -> Iterator[None]:
        """Replace self-attention by ``attend``, in the block."""
        with ExitStack() as stack:
            for name in self.find("attention", names):
                module = self.net.get_submodule(name)
                others = getattr(replacement(module), "changes", ()) if rows else ()
                changes: list[AttentionChange] = [*others, (attend, rows)]
                attended = partial(getattr(module, "attended"), changes=changes)  # noqa: B009
                vars(attended)["changes"] = changes
                stack.enter_context(replaced(module, lambda _, attended=attended: attended))
            yield

    @contextmanager
    def contrasting(
        self, names: Sequence[str], contrast: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[None]:
        """Refuse: there is no attention to a text."""
        self.find("cross", names)
        yield

    @contextmanager
    def silencing(self, names: Sequence[str], rows: Rows | None = None) -> Iterator[None]:
        """Refuse: there is no sound."""
        self.find("exchange", names)
        yield

    def skipping(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Let layers of attention return their input; with ``rows`` they run, and others change."""
        found = self.find("block", names)
        return layers_replaced(self.net, dict.fromkeys(found, partial(_skip, rows)))

    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Change the tokens before layers of attention: ``change(tokens [b, tokens, d])``."""
        found = self.find("block", names)
        return layers_replaced(self.net, dict.fromkeys(found, partial(_change_input, change, rows)))


def _change_input(
    change: Callable[[Tensor], Tensor], rows: Rows | None, forward: Forward
) -> Forward:
    return lambda x: forward(changed_tokens(x, change, rows))


def _skip(rows: Rows | None, forward: Forward) -> Forward:
    return lambda x: x if rows is None else rows.put(forward(x), x[rows.slice])
