"""Several conditions of one network, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..io.files import check_name
from .lengths import LengthEncoder


def check_condition_name(name: str) -> str:
    """Check the name of a condition, and return it.

    It is used as a folder of the model, a part of a module, and in texts ("name=value; …").

    Raises:
        ValueError: it cannot be one of these.
    """
    check_name(name, "the name of a condition")
    if re.search(r"[.=;]", name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"a condition cannot be called {name!r}, which holds one of '.=;' or is a word of "
            "torch's; rename the column"
        )
    return name


class Conditions(nn.Module):
    """Several conditions of one network, by name.

    As text they are ``"label=coat; text=a red coat"``; those left out are null. Embeddings of the
    same argument are added (``class_labels``) or joined (``encoder_hidden_states``). A length
    beside one other condition is written after it: ``"walk; length=60"``.

    Args:
        parts: the encoder of each condition, by name.

    Raises:
        ValueError: a name is not possible (`check_condition_name`).
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({check_condition_name(name): p for name, p in parts.items()})
        lengths = [n for n, p in self.parts.items() if isinstance(p, LengthEncoder)]
        self.length = lengths[0] if lengths else None
        self._alone = next(iter(rest)) if len(rest := {*self.parts} - {*lengths}) == 1 else None
        only = self.parts[self._alone] if lengths and self._alone else None
        tokenizer = getattr(only, "tokenizer", None)
        if tokenizer is not None:  # which makes it an encoder of prompts
            self.tokenizer = tokenizer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where a class is the only condition beside a length."""
        return tuple(getattr(self.parts[self._alone], "classes", ())) if self._alone else ()

    @property
    def indexed(self) -> bool:
        """Whether a condition is of classes or numbers, which a classifier could take."""
        return any(hasattr(part, "index") for part in self.parts.values())

    def split_length(self, name: str | int) -> tuple[str, str | None]:
        """Return a text without its length, and the length; None where it has none."""
        if self.length is None:
            return str(name), None
        found = re.fullmatch(rf"(.*?);?\s*{re.escape(self.length)}=([^;=]*)", str(name), re.DOTALL)
        return (found[1].strip(), found[2].strip()) if found else (str(name), None)

    def alone(self) -> Any:
        """Return a model's encoder: the only condition, all of several, or None without any."""
        parts = list(self.parts.values())
        return self if len(parts) > 1 else parts[0] if parts else None

    def _encoders(self) -> Iterable[tuple[str, Any]]:
        """Return the parts by name; ModuleDict types them as plain modules."""
        return self.parts.items()

    def rows(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the conditions of each sample as numbers, by name."""
        return {name: part.rows(targets[name]) for name, part in self._encoders()}

    def null_rows(self, name: str) -> Tensor:
        """Return the numbers of the null of condition ``name``."""
        return dict(self._encoders())[name].null_row()

    def forward(self, rows: Mapping[str, Tensor]) -> Condition:
        """Return the network's condition."""
        inputs: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            for key, value in part(rows[name]).items():
                inputs[key] = value if key not in inputs else _join(key, inputs[key], value)
        return Condition(inputs)

    def parse(self, name: str | int) -> dict[str, Any]:
        """Read ``"name=value; name=value"`` (or a value alone, where there is one condition).

        Raises:
            ValueError: an unknown name, or a value that does not suit it.
        """
        given = self._split_text(str(name))
        strange = [k for k in given if k not in self.parts]
        if strange:
            raise ValueError(
                f"unknown condition {strange[0]!r}; the conditions are {', '.join(self.parts)}, "
                f"written as '{'; '.join(f'{n}=…' for n in self.parts)}'"
            )
        return {n: part.parse(given.get(n, "")) for n, part in self._encoders()}

    def only(self, name: str | int, part: str) -> str:
        """Return a text with one condition; the others are null.

        Raises:
            ValueError: there is no such part.
        """
        if part not in self.parts:
            raise ValueError(
                f"there is no part {part!r}; the conditions are {', '.join(self.parts)}"
            )
        kept = self._split_text(str(name)).get(part, "")
        return f"{part}={kept}" if len(self.parts) > 1 else kept

    def canonical(self, name: str | int) -> str | int:
        """Return a name as the model's own: a class by its name, with its length.

        Raises:
            ValueError: there is no such class.
        """
        text, length = self.split_length(name)
        if not self.classes or text == "":
            return name
        text = text.removeprefix(f"{self._alone}=").strip()
        index = self.index(text)
        known = self.classes[index] if self.index(self.classes[index]) == index else index
        return known if length is None else f"{known}; {self.length}={length}"

    def _split_text(self, text: str) -> dict[str, str]:
        if self.length is not None:
            text, length = self.split_length(text)
            rest = self._split_others(text) if text else {}
            return rest if length is None else {**rest, self.length: length}
        return self._split_others(text)

    def _split_others(self, text: str) -> dict[str, str]:
        named = self._alone is not None and text.strip().startswith(f"{self._alone}=")
        if len(self.parts) == 1:
            return {next(iter(self.parts)): text}
        if self._alone is not None and not named:
            return {self._alone: text}
        pairs = [part.partition("=") for part in text.split(";") if part.strip()]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError(
                f"the condition {text!r} should be written as "
                f"'{'; '.join(f'{n}=…' for n in self.parts)}'; those left out are null"
            )
        return {key.strip(): value.strip() for key, _, value in pairs}

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode texts, one for each sample."""
        parsed = [self.parse(n) for n in names]
        return self(self._on_device(self.rows({n: [p[n] for p in parsed] for n in self.parts})))

    def null(self, batch: int) -> Condition:
        """Return the null of all conditions for ``batch`` samples."""
        nulls = {n: self.null_rows(n) for n in self.parts}
        return self(self._on_device({n: t.expand(batch, *t.shape) for n, t in nulls.items()}))

    def _on_device(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = next(
            (t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu")
        )
        return {n: t.to(device) for n, t in rows.items()}

    def index(self, name: str | int) -> Any:
        """Return a classifier's target in a condition: its class, or else its numbers.

        That is the first condition of classes, or where there is none the first of numbers.

        Raises:
            ValueError: there is neither.
        """
        known = [n for n, part in self.parts.items() if hasattr(part, "classes")] or [
            n for n, part in self.parts.items() if hasattr(part, "index")
        ]
        if not known:
            raise ValueError(
                "this model has no classes or numbers that a classifier could take; leave "
                "classifier "
                "terms out"
            )
        return self.parse(name)[known[0]]


def _join(key: str, one: Tensor, other: Tensor) -> Tensor:
    return one + other if key == "class_labels" else torch.cat([one, other], dim=1)
