"""A model's card, written from what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .pictures import write_text


def card_text(name: str, about: Mapping[str, Any]) -> str:
    """Return the card (Markdown) of a model from its ``guidestar.json``.

    Args:
        name: of the model.
        about: what training and measuring left there; what is missing is left out.
    """
    parts = [_head(name, about), _training(about), _by_level(about), _judge(about), *(_figures(f) for f in about.get("figures", ()))]
    return "\n\n".join(p for p in parts if p) + "\n"


def write_card(name: str, about: Mapping[str, Any], folder: Path) -> None:
    """Write the card into a model's folder."""
    write_text(card_text(name, about), folder / "README.md")


def _head(name: str, about: Mapping[str, Any]) -> str:
    defaults = ", ".join(f"{k} `{v}`" for k, v in about.get("defaults", {}).items())
    front = f"---\nlicense: {about.get('licence', 'apache-2.0').lower()}\nlibrary_name: guidestar\n---"
    text = f"{front}\n\n# {name}\n\n{about.get('summary', '')}."
    text += f"\n\nData: {about['data']}" if "data" in about else ""
    return text + (f"\n\nRecommended: {defaults}." if defaults else "")


def _training(about: Mapping[str, Any]) -> str:
    if "seconds" not in about:
        return ""
    rows = [(part, f"{about['parameters'][part]:,}", about["recipe"][part]["train"]["steps"], seconds) for part, seconds in about["seconds"].items()]
    return f"## Training\n\n`{about['command']}`, on {about['machine']}.\n\n" + table(("part", "parameters", "steps", "seconds"), rows)


def _by_level(about: Mapping[str, Any]) -> str:
    found = about.get("classifier_accuracy")
    if not found:
        return ""
    end = about.get("classifier_rho_max")
    said = f"It is off by default above σ/α = {end:g}" if end is not None else "At every level it is above 1.2 times chance, so it is on everywhere by default"
    rows = [(rho, f"{accuracy:.1%}") for rho, accuracy in found.items()]
    return f"## The noise-aware classifier\n\nAccuracy on the test images by noise ratio. {said}.\n\n" + table(("σ/α", "accuracy"), rows)


def _judge(about: Mapping[str, Any]) -> str:
    if "judge_accuracy" not in about:
        return ""
    return f"## The judge\n\nAn independent network on clean images that guides nothing: {about['judge_accuracy']:.2%} of the test images."


def _figures(figures: Mapping[str, Any]) -> str:
    head = ("guidance", "judge accuracy", "Fréchet", "diversity", "class shares", "NFE")
    rows = [(f"`{r['guidance']}`", f"{r['accuracy']:.1%}", f"{r['frechet']:.2f}", f"{r['diversity']:.2f}", _shares(r), f"{r['nfe']:g}") for r in figures["rows"]]
    return f"## {figures['title']}\n\n{figures['text']}\n\n    {figures['command']}\n\n" + table(head, rows)


def _shares(row: Mapping[str, Any]) -> str:
    return f"{min(row['shares']):.1%}–{max(row['shares']):.1%}"


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
