"""Draw the pictures of guidance-explained.md, and print the figures it quotes.

Needs matplotlib (``pip install 'guidestar[docs]'``). Everything is exact, on Gaussian mixtures in
the plane; one core draws it in well under two minutes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from PIL import Image

import guidestar as gs
from guidestar.data.mixtures import Mixture, blobs, moons
from guidestar.sampling import noise

OUT = Path(__file__).parent / "figures"
COLOURS = ("#c1440e", "#1f6f8b", "#6a994e")
GUIDED, PLAIN = "#c1440e", "#1f6f8b"
VP = gs.VP.linear()
DATA = gs.Level(1.0, 0.0, 0.0)
F64 = torch.float64
BLOBS, MOONS = (-3.2, 3.2, -2.9, 3.2), (-3.2, 3.2, -2.3, 2.3)


def bind(text: str, mixture: Mixture, labels: Tensor) -> gs.Guided:
    """Give one mixture both roles: the denoiser that takes a label, and the exact noisy
    classifier.
    """
    return gs.Guided(
        text,
        mixture,
        cond=mixture.condition(labels),
        null=mixture.null(),
        classifiers={"classifier": mixture},
        target=labels,
    )


def draw(
    text: str, mixture: Mixture, label: int = 0, *, count: int = 2000, steps: int = 100
) -> Tensor:
    """Sample ``[count, 2]`` of one class under a guidance."""
    grid = gs.log_snr(VP, steps, rho_min=0.01)
    return gs.sample(
        bind(text, mixture, torch.full((count,), label)),
        grid=grid,
        seeds=range(count),
        shape=(2,),
        dtype=F64,
    )


def mesh(reach: float, n: int = 161) -> Tensor:
    """Return the points of a square ``[n², 2]``, row by row."""
    line = torch.linspace(-reach, reach, n, dtype=F64)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)


def surface(values: Tensor, reach: float) -> tuple:
    """Shape values on a mesh for matplotlib's contours."""
    n = round(len(values) ** 0.5)
    line = torch.linspace(-reach, reach, n).numpy()
    return line, line, values.reshape(n, n).numpy()


def contour(
    ax: Axes, mixture: Mixture, label: int | None, colour: str, *, alpha: float = 0.8
) -> None:
    """Draw where the density of the data is 50, 10 and 1 % of its peak."""
    at, reach = mesh(4.0), 4.0
    labels = None if label is None else torch.full((len(at),), label)
    density = mixture.log_density(at, DATA, labels).exp()
    ax.contour(
        *surface(density / density.max(), reach),
        levels=[0.01, 0.1, 0.5],
        colors=colour,
        linewidths=0.9,
        alpha=alpha,
    )


def tidy(ax: Axes, window: tuple[float, float, float, float], title: str) -> None:
    """Make a panel without ticks that shows ``window``: left, right, bottom, top."""
    ax.set(xlim=window[:2], ylim=window[2:], xticks=[], yticks=[], aspect="equal")
    ax.set_title(title, fontsize=10)
    for spine in ax.spines.values():
        spine.set_color("0.75")


def save(figure, name: str) -> None:
    """Write a picture in few colours, which keeps it small."""
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / name, dpi=110)
    plt.close(figure)
    Image.open(OUT / name).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(OUT / name, optimize=True)
    print(f"  {name}: {(OUT / name).stat().st_size / 1000:.0f} kB")


def fields() -> None:
    """Bayes in pictures: unconditional score + classifier gradient = conditional score."""
    mixture, reach, figure = blobs(), 3.4, plt.figure(figsize=(10.2, 7.3), layout="constrained")
    panels = figure.subplots(2, 3)
    for row, (rho, stretch) in zip(panels, ((0.3, 6.5), (1.5, 3.2)), strict=True):
        level = gs.VE().at_rho(rho)
        x = mesh(0.92 * reach, 15).requires_grad_()
        gradient = torch.autograd.grad(mixture.log_prob(x, level, torch.tensor([0])).sum(), x)[0]
        x = x.detach()
        score = mixture.score(x, level)
        truth = mixture.score(x, level, torch.zeros(len(x), dtype=torch.int64))
        print(
            f"fields: noise ratio {rho}: max |sum − conditional score| = "
            f"{(score + gradient - truth).abs().max():.1e}"
        )
        parts = (
            ("unconditional score  ∇log p(x)", score, "0.25", None),
            ("classifier gradient  ∇log p(y|x)", gradient, GUIDED, None),
        )
        for ax, (title, arrows, colour, label) in zip(
            row, (*parts, ("their sum  =  ∇log p(x|y)", score + gradient, PLAIN, 0)), strict=True
        ):
            _field(ax, mixture, level, reach, label)
            longest = torch.linalg.vector_norm(arrows, dim=1).clamp_min(1e-9)
            short = (
                arrows / longest.sqrt()[:, None]
            )  # lengths by their square root: far out they grow without bound
            ax.quiver(
                *x.T.numpy(),
                *short.T.numpy(),
                color=colour,
                angles="xy",
                scale_units="xy",
                scale=stretch,
                width=0.005,
            )
            tidy(ax, (-reach, reach, -reach, reach), title)
        row[0].set_ylabel(f"noise ratio σ/α = {rho}", fontsize=10)
    figure.legend(
        handles=[Patch(color=c, alpha=0.5, label=f"class {k}") for k, c in enumerate(COLOURS)],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    figure.suptitle(
        "Classifier guidance is Bayes' rule, one arrow at a time (y = class 0; an arrow is as "
        "long as the square root of its vector)",
        fontsize=12,
    )
    save(figure, "fields.png")


def _field(ax: Axes, mixture: Mixture, level: gs.Level, reach: float, label: int | None) -> None:
    """Shade the classes: where they are dense, in their colours."""
    at = mesh(reach)
    for k, colour in enumerate(COLOURS):
        density = mixture.log_density(at, level, torch.full((len(at),), k)).exp()
        if label in (None, k):
            ax.contourf(
                *surface(density / density.max(), reach),
                levels=[0.1, 0.4, 0.7, 1.01],
                colors=colour,
                alpha=0.13,
            )


def scales() -> None:
    """What a rising scale does to samples."""
    figure = plt.figure(figsize=(12.6, 5.2), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)
    for row, (name, mixture, window) in zip(
        figure.subplots(2, 5), (("blobs", blobs(), BLOBS), ("moons", moons(), MOONS)), strict=True
    ):
        for ax, scale in zip(row, (0, 1, 2, 4, 8), strict=True):
            x = draw(f"cfg({scale})", mixture, count=1200)
            probability = mixture.log_prob(x, DATA, torch.tensor([0])).exp().mean()
            spread = x.T.cov().trace().sqrt()
            print(
                f"scales: {name}, cfg({scale}): mean p(y|x) {probability:.3f}, root of the total "
                f"variance {spread:.3f}"
            )
            contour(ax, mixture, None, "0.72")
            contour(ax, mixture, 0, PLAIN)
            ax.plot(*x.T.numpy(), ".", ms=2.6, alpha=0.5, color=GUIDED, mew=0)
            tidy(
                ax,
                window,
                f"cfg({scale}){ {0: '  unconditional', 1: '  conditional'}.get(scale, '') }",
            )
            ax.set_xlabel(f"mean p(y|x) {probability:.2f}, spread {spread:.2f}", fontsize=9)
        row[0].set_ylabel(name, fontsize=10)
    figure.suptitle(
        "Samples of one class (blue: its true density, grey: everything) as the scale rises: "
        "surer, and less varied",
        fontsize=12,
    )
    save(figure, "scales.png")


def same() -> None:
    """Trajectories of the two guidances lie on each other."""
    mixture, seeds = blobs(), range(18)
    labels = torch.tensor([0, 1, 2] * 6)
    grid = gs.log_snr(VP, 100, rho_min=0.01)
    figure = plt.figure(figsize=(11.4, 4.4), layout="constrained")
    for ax, scale in zip(figure.subplots(1, 3), (1, 3, 8), strict=True):
        paths = [
            _path(bind(text, mixture, labels), grid, seeds)
            for text in (f"cfg({scale})", f"uncond + classifier({scale})")
        ]
        gap = (paths[0] - paths[1]).abs().max()
        print(
            f"same: scale {scale}: largest difference along {len(seeds)} trajectories of "
            f"{grid.steps} steps {gap:.1e}"
        )
        for k, colour in enumerate(COLOURS):
            contour(ax, mixture, k, colour, alpha=0.35)
            for i in range(k, len(seeds), 3):
                ax.plot(
                    *paths[0][:, i].T.numpy(),
                    color=colour,
                    lw=4.5,
                    alpha=0.3,
                    solid_capstyle="round",
                )
                ax.plot(*paths[1][:, i].T.numpy(), color="black", lw=0.8, ls=(0, (4, 2)))
                ax.plot(*paths[1][-1, i].numpy(), "o", color=colour, ms=4.5, mec="black", mew=0.6)
        tidy(ax, (-3.7, 3.7, -3.1, 3.7), f"cfg({scale})  and  uncond + classifier({scale})")
        ax.set_xlabel(f"largest difference {gap:.0e}", fontsize=9)
    handles = [
        plt.Line2D([], [], color="0.4", lw=4.5, alpha=0.4, label="classifier-free"),
        plt.Line2D([], [], color="black", lw=0.8, ls="--", label="exact classifier"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        "With an exact classifier the two guidances are one: trajectories from noise to data "
        "(dots), coloured by class",
        fontsize=12,
    )
    save(figure, "same.png")


def _path(guided: gs.Guided, grid: gs.Grid, seeds: range) -> Tensor:
    """Return all states of a run ``[steps + 1, B, 2]``."""
    streams = gs.Draw(seeds)
    x = noise((2,), grid[0], streams, dtype=F64)
    return torch.stack(
        [
            x,
            *(
                state.x
                for state in gs.trajectory(guided, x, grid=grid, solver=gs.DDIM(), draw=streams)
            ),
        ]
    )


def tilted() -> None:
    """What a scale above 1 samples is not p(x) p(y|x)^s."""
    mixture, figure = blobs(), plt.figure(figsize=(11.4, 4.0), layout="constrained")
    at = mesh(7.0, 401)
    for ax, scale in zip(figure.subplots(1, 3), (1, 2, 4), strict=True):
        mass = (
            mixture.log_density(at, DATA) + scale * mixture.log_prob(at, DATA, torch.tensor([0]))
        ).softmax(0)
        x = draw(f"cfg({scale})", mixture, count=2000, steps=400)
        means = (mass[:, None] * at).sum(0), x.mean(0)
        stds = ((mass[:, None] * at**2).sum(0) - means[0] ** 2).sqrt(), x.std(0)
        for name, mean, std in zip(("p(x) p(y|x)^s", "samples"), means, stds, strict=True):
            print(
                f"tilted: s = {scale}: {name:14} mean ({mean[0]:+.2f}, {mean[1]:+.2f}), standard "
                f"deviation ({std[0]:.2f}, {std[1]:.2f})"
            )
        ax.plot(*x.T.numpy(), ".", ms=2.6, alpha=0.45, color=GUIDED, mew=0)
        ax.contour(
            *surface(mass / mass.max(), 7.0),
            levels=[0.01, 0.1, 0.5],
            colors="black",
            linewidths=1.0,
        )
        tidy(ax, (-2.9, 2.9, -1.2, 3.6), f"scale {scale}")
        ax.set_xlabel(
            f"height of the mean: density {means[0][1]:.2f}, samples {means[1][1]:.2f}\nstandard "
            f"deviation there: {stds[0][1]:.2f}, {stds[1][1]:.2f}",
            fontsize=9,
        )
    figure.suptitle(
        "Guided samples (dots) and the density p(x) p(y|x)^s (contours): equal at scale 1, not "
        "above",
        fontsize=12,
    )
    save(figure, "tilted.png")


INTERVALS = (
    (None, "always"),
    ((2.0, float("inf")), "σ/α > 2 only"),
    ((0.2, 2.0), "0.2 < σ/α ≤ 2 only"),
    ((0.0, 0.2), "σ/α ≤ 0.2 only"),
)


def interval() -> None:
    """Where along the run guidance acts."""
    mixture, figure = moons(), plt.figure(figsize=(12.6, 3.4), layout="constrained")
    for ax, (span, name) in zip(figure.subplots(1, 4), INTERVALS, strict=True):
        x = draw(
            "cfg(4)" if span is None else f"cfg(4, interval=({span[0]}, {span[1]}))",
            mixture,
            count=1200,
        )
        probability = mixture.log_prob(x, DATA, torch.tensor([0])).exp().mean()
        parts = torch.bincount(torch.cdist(x, mixture.means[:6]).argmin(1), minlength=6) / len(x)
        print(
            f"interval: cfg(4) {name}: mean p(y|x) {probability:.3f}, share of the six parts "
            f"{[round(p, 2) for p in parts.tolist()]}"
        )
        contour(ax, mixture, None, "0.72")
        contour(ax, mixture, 0, PLAIN)
        ax.plot(*x.T.numpy(), ".", ms=2.6, alpha=0.5, color=GUIDED, mew=0)
        tidy(ax, MOONS, f"cfg(4), {name}")
        ax.set_xlabel(
            f"mean p(y|x) {probability:.3f}\nrarest part {parts.min():.0%}, commonest "
            f"{parts.max():.0%}",
            fontsize=9,
        )
    figure.suptitle(
        "Guidance within an interval of noise ratios (in truth each of the six parts of the "
        "class holds 17 %)",
        fontsize=12,
    )
    save(figure, "interval.png")


if __name__ == "__main__":
    for picture in (fields, same, scales, tilted, interval):
        picture()
