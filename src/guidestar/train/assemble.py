"""From a finished training to a model folder that samples, guides and can be shipped."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..card import write_card
from ..data import fashion_mnist
from ..evaluate.levels import accuracy_by_level, trusted_rho
from ..folder import save
from ..model import Model
from .recipe import Recipe, build, checkpoint

RHOS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0)
"""Noise ratios at which a noise-aware classifier is examined."""


def averaged(recipe: Recipe, part: str, out: Path) -> Any:
    """Return a part with its averaged weights, from its checkpoint, frozen."""
    module, _ = build(recipe, part)
    module.load_state_dict(torch.load(checkpoint(out, part), weights_only=True, map_location="cpu")["ema"])
    return module.requires_grad_(False).eval()


def seconds(recipe: Recipe, out: Path) -> dict[str, int]:
    """Return how long each part trained."""
    return {part: round(torch.load(checkpoint(out, part), weights_only=True, map_location="cpu")["seconds"]) for part in recipe.parts()}


def assemble(recipe: Recipe, out: Path, *, folder: str | None = None) -> Model:
    """Make a model of the trained parts under ``out`` and write it to ``out / recipe.name``.

    The noise-aware classifier is examined on the test images: up to which noise ratio its accuracy
    is at least 1.2 times chance becomes its default interval.
    """
    trained = {part: averaged(recipe, part, out) for part in recipe.parts()}
    test, main = fashion_mnist.load("test", folder or recipe.data.folder), trained["model"]
    card: dict[str, Any] = {
        "summary": "Fashion-MNIST, class-conditional, 28×28 grey, v-prediction on a linear VP schedule",
        "licence": "Apache-2.0",
        "data": "Fashion-MNIST (60,000 training and 10,000 test images of clothing; Zalando SE, MIT licence)",
        "schedule": recipe.schedule.model_dump(),
        "command": f"guidestar train recipes/{recipe.name}.toml",
        "machine": machine(),
        "parameters": {part: sum(p.numel() for p in net.parameters()) for part, net in trained.items()},
        "seconds": seconds(recipe, out),
        "recipe": recipe.model_dump(),
    }
    if "classifier" in trained:
        card["classifier_accuracy"] = _examine(trained["classifier"], recipe, test)
        card["classifier_rho_max"] = trained["classifier"].rho_max
    if "judge" in trained:
        card["judge_accuracy"] = accuracy(trained["judge"], *test)
    model = Model(
        name=recipe.name,
        denoiser=main.denoiser,
        schedule=recipe.schedule.schedule(),
        shape=tuple(test[0].shape[1:]),
        encoder=main.encoder,
        nets={"weak": (trained["weak"].denoiser, trained["weak"].encoder)} if "weak" in trained else {},
        classifiers={"classifier": trained["classifier"]} if "classifier" in trained else {},
        judge=trained.get("judge"),
        defaults={"guidance": "cfg(2, interval=(0.3, 3))", "steps": 10, "solver": "dpmpp-2m", "grid": "log_snr"},
        card=card,
    )
    save(model, out / recipe.name)
    write_card(model.name, {**card, "defaults": model.defaults}, out / recipe.name)
    return model


def machine() -> str:
    """Describe this machine in a few words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    return f"{device}, torch {torch.__version__}"


def _examine(classifier: Any, recipe: Recipe, test: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    found = accuracy_by_level(classifier, (test[0][:2000], test[1][:2000]), recipe.schedule.schedule(), RHOS)
    trusted = trusted_rho(found, 1 / len(classifier.config["classes"]))
    classifier.rho_max = trusted  # None: no limit was found
    classifier.register_to_config(rho_max=trusted)
    return {f"{rho:g}": round(value, 4) for rho, value in found.items()}


@torch.inference_mode()
def accuracy(judge: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of clean images that ``judge`` classifies rightly."""
    hits = [judge(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.cat(hits).double().mean())
