"""What the page shows, as HTML and SVG: pictures, progress, errors, plans, pushes, controls."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from ..ticket import Pushes
from .builder import BuilderPart
from .controls import Control
from .planning import Planned
from .problems import Problem
from .running import JobProgress
from .starts import Start

INKS = ("#4f6bed", "#e0752d", "#2f9e6e", "#b14ac0", "#c9a227", "#d1495b", "#3aa0b8", "#7a7f8c")
"""Colours of passes and terms, for light and dark."""

_WIDTH, _HEIGHT = 560, 110


def pictures(
    images: Sequence[str], labels: Sequence[str], names: Sequence[str] = (), *, note: str = ""
) -> str:
    """Show pictures (PNG in base64) in a grid; with ``names`` they can be downloaded by these."""
    cards = []
    for k, image in enumerate(images):
        shown = f'<img src="data:image/png;base64,{image}" alt="{escape(labels[k], quote=True)}">'
        if names:
            name = escape(names[k], quote=True)
            shown = (
                f'<a download="{name}" href="data:image/png;base64,{image}" '
                f'title="Download; the file carries its settings">{shown}</a>'
            )
        cards.append(f"<figure>{shown}<figcaption>{escape(labels[k])}</figcaption></figure>")
    if not cards:
        return f'<div class="gs-empty">{escape(note)}</div>'
    few = " gs-few" if len(cards) < 3 else ""
    return f'<div class="gs-pictures{few}">{"".join(cards)}</div>'


def start(found: Start | None) -> str:
    """Show the picture to start from, with a button that leaves it out; nothing where none is."""
    if found is None:
        return ""
    return (
        f'<div class="gs-start"><img src="data:image/png;base64,{found.image}" alt="start picture">'
        '<button type="button" data-remove title="start from noise again" '
        'aria-label="leave the start picture out">×</button></div>'
    )


def progress(found: Sequence[JobProgress]) -> str:
    """Show where runs stand together."""
    if not found:
        return '<div class="gs-progress"></div>'
    steps = sum(p.steps for p in found) or 1
    done = sum(p.done for p in found)
    seconds = max(p.seconds for p in found)
    wrong = [p for p in found if p.status in ("failed", "cancelled")]
    places = [p.place for p in found if p.place]
    messages = list(dict.fromkeys(p.message for p in found if p.message))
    if wrong:
        text, kind = "; ".join(messages) or wrong[0].status, wrong[0].status
    elif all(p.status == "done" for p in found):
        text, kind = f"done in {seconds:.2f} s", "done"
        text += f" · {'; '.join(messages)}" if messages else ""
    elif places:
        text, kind = f"waiting, place {min(places)} in the queue", "queued"
    else:
        text, kind = f"step {done} of {steps} · {seconds:.1f} s", "running"
    share = 100 if kind == "done" else round(100 * done / steps)
    return (
        f'<div class="gs-progress gs-{kind}" role="status"><div style="width:{share}%"></div>'
        f"<span>{escape(text)}</span></div>"
    )


def problem(found: Problem | None) -> str:
    """Show an error at its place in the expression; nothing where there is none."""
    if found is None:
        return ""
    text = found.text
    whole, short = escape(found.message, quote=True), escape(_cut(found.message, 220))
    message = f'<span title="{whole}">{short}</span>'
    if found.end <= found.start:
        return f'<div class="gs-problem" role="alert"><p>{message}</p></div>'
    before, wrong, after = (
        escape(t) for t in (text[: found.start], text[found.start : found.end], text[found.end :])
    )
    return (
        f'<div class="gs-problem" role="alert"><code>{before}<mark>{wrong or "&nbsp;"}</mark>'
        f"{after}</code><p>{message}</p></div>"
    )


def plot(picture: bytes, label: str) -> str:
    """Show an X/Y plot (a PNG file), which can be saved."""
    data, text = base64.b64encode(picture).decode(), escape(label, quote=True)
    return (
        f'<p><a id="gs-plot-save" download="xy-plot.png" href="data:image/png;base64,{data}">Save '
        f'as a picture</a></p><img src="data:image/png;base64,{data}" alt="{text}">'
    )


def plan(found: Planned) -> str:
    """Draw the passes of every step as stacked bars, with what they cost."""
    most = max((sum(passes.values()) for _, passes in found.steps), default=0) or 1
    wide = _WIDTH / max(1, len(found.steps))
    bars = []
    for k, (rho, passes) in enumerate(found.steps):
        top = float(_HEIGHT)
        for name, count in passes.items():
            tall = _HEIGHT * count / most
            top -= tall
            ink = INKS[found.names.index(name) % len(INKS)]
            title = f"step {k + 1}, noise ratio {rho:.3g}: {name}"
            bars.append(
                f'<rect x="{k * wide + 0.5:.1f}" y="{top:.1f}" width="{max(wide - 1, 0.5):.1f}" '
                f'height="{tall:.1f}" fill="{ink}"><title>{escape(title)}</title></rect>'
            )
    nfe = f"{found.nfe:g}" if found.least == found.nfe else f"{found.least:g}–{found.nfe:g}"
    cost = f"<b>{nfe}</b> evaluations a picture"
    if found.gradients:
        cost += f", <b>{found.gradients:g}</b> gradients"
    cost += f" · {len(found.steps)} steps · {found.pictures} picture{'s'[: found.pictures > 1]}"
    if found.seconds is not None:
        cost += f" · about <b>{_seconds(found.seconds)}</b>"
    keys = "".join(
        f'<span><i style="background:{INKS[k % len(INKS)]}"></i>{escape(name)}</span>'
        for k, name in enumerate(found.names)
    )
    return (
        f'<div class="gs-plan"><p>{cost}</p><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="passes of every step">{"".join(bars)}'
        f'</svg><p class="gs-key">{keys}</p></div>'
    )


def pushes(found: Sequence[Pushes], maps: Mapping[str, Sequence[tuple[int, str]]]) -> str:
    """Draw each term's push along the run: its size by step, and where it pushes the picture.

    Args:
        found: of every step.
        maps: of each term, steps and pictures (PNG in base64).
    """
    terms = list(dict.fromkeys(name for p in found for name in p.sizes))
    if not terms:
        return '<div class="gs-empty">This expression has no terms, so nothing pushes.</div>'
    shares = {t: [p.sizes.get(t, 0.0) / max(p.base, 1e-9) for p in found] for t in terms}
    most = max(v for values in shares.values() for v in values) or 1.0
    lines = []
    for k, term in enumerate(terms):
        at = [
            (_WIDTH * (i + 0.5) / len(found), _HEIGHT * (1 - 0.96 * v / most))
            for i, v in enumerate(shares[term])
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        ink = INKS[k % len(INKS)]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ink}"/>' for x, y in at)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{ink}"/>{dots}')
    rows = []
    for k, term in enumerate(terms):
        strip = "".join(
            f'<figure><img src="data:image/png;base64,{image}" alt="push at step {step + 1}">'
            f"<figcaption>{step + 1}</figcaption></figure>"
            for step, image in maps.get(term, ())
        )
        rows.append(
            f'<h4><i style="background:{INKS[k % len(INKS)]}"></i><code>{escape(term)}</code></h4>'
            f'<div class="gs-strip">{strip}</div>'
        )
    return (
        f'<div class="gs-pushes"><p>Size of each push beside the clean estimate, by step; the top '
        f'line is {100 * most:.3g} %.</p><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(lines)}'
        "</svg><p>Where the first picture is pushed, by step: lighter where it is raised, darker "
        f"where it is lowered; each on a scale of its own.</p>{''.join(rows)}</div>"
    )


def controls(parts: Sequence[BuilderPart], base: str, methods: Sequence[tuple[str, str]]) -> str:
    """Draw the controls of an expression; the page's script sends what is changed."""
    bases = "".join(
        f'<option value="{b}"{" selected" * (b == base)}>{label}</option>'
        for b, label in (
            ("", "as the terms need"),
            ("cond", "cond"),
            ("uncond", "uncond"),
            ("neg", "neg"),
        )
    )
    add = "".join(
        f'<option value="{escape(name)}" title="{escape(text, quote=True)}">{escape(name)} — '
        f"{escape(_cut(text, 70))}</option>"
        for name, text in methods
    )
    drawn = "".join(_part(index, part) for index, part in enumerate(parts))
    return (
        f'<div class="gs-builder"><div class="gs-row"><label>base <select data-base>{bases}'
        '</select></label><label class="gs-add">add <select data-add aria-label="add a term">'
        f'<option value="">a term or post …</option>{add}</select></label></div>{drawn}</div>'
    )


def _part(index: int, part: BuilderPart) -> str:
    own = "".join(_control(index, c) for c in part.controls if not c.more)
    more = "".join(_control(index, c) for c in part.controls if c.more)
    if more:
        more = f"<details><summary>when and how often</summary>{more}</details>"
    cost = f"<em>{escape(part.evaluations)}</em>" if part.evaluations else ""
    return (
        f'<section data-index="{index}"><header><b>{escape(part.name)}</b>'
        f'<button type="button" data-remove="{index}" aria-label="remove {escape(part.name)}">×'
        f"</button></header><p>{escape(part.summary)} {cost}</p>{own}{more}</section>"
    )


def _control(index: int, c: Control) -> str:
    place = f'data-index="{index}" data-name="{escape(c.name)}"'
    value = escape(c.text, quote=True)
    if c.kind == "choice":
        options = "".join(
            f'<option value="{escape(v, quote=True)}"{" selected" * (v == c.text)}>'
            f"{escape(v.strip(chr(39)))}</option>"
            for v in c.choices
        )
        field = f"<select {place}>{options}</select>"
    elif c.kind == "flag":
        field = f'<input type="checkbox" {place}{" checked" * (c.text == "True")}>'
    elif c.low is not None:
        span = f'min="{c.low:g}" max="{c.high:g}" step="{c.step:g}" value="{value}"'
        field = (
            f'<input type="range" {place} {span} aria-label="{escape(c.name)}">'
            f'<input type="text" inputmode="decimal" {place} value="{value}">'
        )
    else:
        shown = "" if c.text in ("None", "[]") else value
        field = f'<input type="text" {place} value="{shown}" placeholder="{value}">'
    title = escape(c.help, quote=True)
    return (
        f'<div class="gs-control"><label title="{title}">{escape(c.name)}</label>{field}'
        f"<small>{escape(c.help)}</small></div>"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
