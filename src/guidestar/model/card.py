"""Write a model's card (README.md) from its ``guidestar.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..io.documents import as_value_error
from ..io.images import write_text
from .manifest import Card


def card_text(name: str, about: Card) -> str:
    """Return the card (Markdown) of a model from its ``guidestar.json``.

    Args:
        name: of the model.
        about: the values of that file; sections whose values are missing are left out.

    Raises:
        ValueError: a value there is of another kind than training and measuring write.
    """
    with as_value_error(
        f"the card of {name} cannot be written from the values in its guidestar.json"
    ):
        parts = [
            _head(name, about),
            _diffusers(about),
            _student(about),
            _training(about),
            _autoencoder(about),
            _by_level(about),
            _regressor(about),
            _judge(about),
            _clips(about),
            *(_figures(f) for f in about.get("figures", ())),
        ]
    return "\n\n".join(p for p in parts if p) + "\n"


def write_card(name: str, about: Card, folder: Path) -> None:
    """Write the card into a model's folder."""
    write_text(card_text(name, about), folder / "README.md")


def _head(name: str, about: Card) -> str:
    defaults = ", ".join(f"{k} `{v}`" for k, v in about.get("defaults", {}).items())
    front = (
        f"---\nlicense: {about.get('licence', 'apache-2.0').lower()}\nlibrary_name: guidestar\n---"
    )
    text = f"{front}\n\n# {name}\n\n{about.get('summary', '')}."
    text += f"\n\nData: {about['data']}" if "data" in about else ""
    text += f"\n\nRecommended: {defaults}." if defaults else ""
    for steps, rhos in about.get("grids", {}).items():
        own = about.get("by_steps", {}).get(steps, {})
        settings = "".join(f", {k} `{v}`" for k, v in own.items())
        levels = ", ".join(f"{r:g}" for r in rhos)
        text += f"\n\nWith {steps} steps: σ/α at {levels}{settings}."
    return text


def _diffusers(about: Card) -> str:
    use = about.get("diffusers")
    if not use:
        return ""
    if "pipeline" not in use:
        return f"## In Diffusers\n\n{use['needs'][:1].upper()}{use['needs'][1:]}."
    code = (
        "from diffusers import DiffusionPipeline\n\npipe = "
        f"DiffusionPipeline.from_pretrained(folder)  # a {use['pipeline']}\n{use['use']}"
    )
    return (
        f"## In Diffusers\n\n```python\n{code}\n```\n\nThis samples without guidestar, with the "
        "pipeline's own guidance."
    )


def _student(about: Card) -> str:
    student = about.get("student")
    if not student:
        return ""
    scale = student["scale"]
    defaults = about.get("defaults", {})
    how = (
        f"w is an input of the network, from {scale[0]:g} to {scale[1]:g} (`scale=`, `--scale`)"
        if scale
        else "its scales are fixed"
    )
    use = _STUDENTS.get(student["method"], _OF_ITS_STEPS).format(
        steps=defaults.get("steps"), solver=defaults.get("solver"), grid=defaults.get("grid")
    )
    return (
        f"## Student\n\nOne pass gives what `{student['guidance']}` of {student['teacher']} "
        f"gives; {how}. {use}"
    )


_OF_ITS_STEPS = "It is for {steps} steps of `{solver}` on the grid `{grid}`, and for no others."

_STUDENTS = {
    "guided": "It is for any solver and number of steps.",
    "meanflow": (
        "It takes any number of steps of `{solver}`, by default {steps}; other solvers get the "
        "velocity at a level, as from any model."
    ),
    "consistency": (
        "It takes any few steps of `{solver}`, one too, by default {steps} on the grid `{grid}`; "
        "it is for no other solver."
    ),
}
"""What students are for, by the method that trained them; others are for their own steps alone."""


def _training(about: Card) -> str:
    if "seconds" not in about:
        return ""
    losses = about.get("loss", {})
    head = ("part", "parameters", "steps", "seconds", *(["final loss"] if losses else []))
    rows = [
        (
            part,
            f"{about['parameters'][part]:,}",
            about["recipe"][part]["train"]["steps"],
            seconds,
            *([losses[part]] if losses else []),
        )
        for part, seconds in about["seconds"].items()
    ]
    return (
        f"## Training\n\n`{about['command']}`, on {about['machine']}. The whole recipe is in "
        "`guidestar.json`.\n\n" + markdown_table(head, rows)
    )


def _autoencoder(about: Card) -> str:
    found = about.get("autoencoder")
    if not found:
        return ""
    pictures, latents = (" × ".join(map(str, found[k])) for k in ("pictures", "latents"))
    figures = [f"PSNR {found['psnr']:.2f} dB"]
    figures += [f"SSIM {found['ssim']:.3f}"] if "ssim" in found else []
    text = (
        f"## The autoencoder\n\nPictures of {pictures} numbers become latents of {latents}. "
        f"{found['of']:,} held-out pictures, encoded and decoded: {', '.join(figures)} on average."
    )
    if "frechet" in found:
        text += (
            " Fréchet distance of the measuring CLIP's embeddings to those of the pictures: "
            f"{found['frechet']:.3g}; halved and enlarged again (bicubic): {found['half']:.3g}."
        )
    further = about.get("decoder")
    if further:
        text += (
            " With the decoder as it ships, trained further by itself: PSNR "
            f"{further['psnr']:.2f} dB"
        )
        text += f", SSIM {further['ssim']:.3f}" if "ssim" in further else ""
        text += f", Fréchet distance {further['frechet']:.3g}" if "frechet" in further else ""
        text += "."
    return text


def _by_level(about: Card) -> str:
    found = about.get("classifier_accuracy")
    if not found:
        return ""
    end = about.get("classifier_rho_max")
    note = (
        f"It is off by default above σ/α = {end:g}"
        if end is not None
        else "At every level it is above 1.2 times chance, so it is on everywhere by default"
    )
    errors = about.get("classifier_ece", {})
    head = (
        "σ/α",
        "accuracy",
        *(["calibration error, as trained", "with its temperatures"] if errors else []),
    )
    rows = [
        (rho, f"{accuracy:.1%}", *(f"{e:.3f}" for e in errors.get(rho, ())))
        for rho, accuracy in found.items()
    ]
    return (
        f"## The noise-aware classifier\n\nAccuracy on the test images by noise ratio. {note}.\n\n"
        + markdown_table(head, rows)
    )


def _regressor(about: Card) -> str:
    found = about.get("regressor")
    if not found:
        return ""
    note = (
        "Mean squared error on held-out samples by noise ratio: as a share of the numbers' "
        "variance (1: it knows nothing), and relative to the variance that it predicted as trained"
    )
    rows = [
        (rho, f"{unexplained:.3f}", f"{surprise:.2f}")
        for rho, (unexplained, surprise) in found.items()
    ]
    return (
        f"## The noise-aware regressor\n\n{note} (its temperatures bring that to 1).\n\n"
        + markdown_table(("σ/α", "unexplained", "by its own variance"), rows)
    )


def _judge(about: Card) -> str:
    if "judge_accuracy" not in about:
        return ""
    return (
        "## The judge\n\nAn independent network on clean images that guides nothing: "
        f"{about['judge_accuracy']:.2%} of the test images."
    )


def _clips(about: Card) -> str:
    found = about.get("retrieval")
    if not found:
        return ""
    keys = [k for k in next(iter(found.values())) if k != "of"]
    rows = [(part, *(f"{row[k]:.1%}" for k in keys), row["of"]) for part, row in found.items()]
    text = (
        "## The CLIPs\n\nHow often the right one is among the first 1 or 5, of held-out pictures "
        "and their captions.\n\n" + markdown_table(("part", *keys, "pictures"), rows)
    )
    noisy = about.get("noisy_clip")
    if not noisy:
        return text
    end = (
        f"It is off by default above σ/α = {noisy['rho_max']:g}."
        if noisy["rho_max"] is not None
        else "It is on at every level by default."
    )
    levels = [(rho, f"{share:.1%}") for rho, share in noisy["image to text R@5"].items()]
    return (
        f"{text}\n\nThe noise-aware CLIP that guides, among {noisy['of']} captions of held-out "
        f"pictures, by noise ratio. {end}\n\n" + markdown_table(("σ/α", "R@5"), levels)
    )


def _figures(figures: Card) -> str:
    if "top 5" in figures["rows"][0]:
        return (
            f"## {figures['title']}\n\n{figures['text']}\n\n    {figures['command']}\n\n"
            + text_table(figures["rows"])
        )
    head = ("guidance", "judge accuracy", "Fréchet", "diversity", "class shares", "NFE")
    rows = [
        (
            f"`{r['guidance']}`",
            f"{r['accuracy']:.1%}",
            f"{r['frechet']:.2f}",
            f"{r['diversity']:.2f}",
            _shares(r),
            f"{r['nfe']:g}",
        )
        for r in figures["rows"]
    ]
    return (
        f"## {figures['title']}\n\n{figures['text']}\n\n    {figures['command']}\n\n"
        + markdown_table(head, rows)
    )


def text_table(rows: Sequence[Card]) -> str:
    """Write the figures of a text model (`measure_text`) as a table."""
    head = (
        "guidance",
        "right caption first",
        "among the first 5",
        "CLIP score",
        "Fréchet",
        "nearest real",
        "NFE",
    )
    cells = [
        (
            f"`{r['guidance']}`",
            f"{r['top 1']:.1%}",
            f"{r['top 5']:.1%}",
            f"{r['score']:.3f}",
            f"{r['frechet']:.3f}",
            f"{r['nearest']:.3f}",
            f"{r['nfe']:g}",
        )
        for r in rows
    ]
    return markdown_table(head, cells)


def _shares(row: Card) -> str:
    return f"{min(row['shares']):.1%}–{max(row['shares']):.1%}"


def markdown_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
