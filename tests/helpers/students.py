"""A teacher of three classes, and recipes of its students."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.train.export import assemble
from guidestar.train.recipe import schema as recipes
from guidestar.train.run import train
from guidestar.train.students.recipe import checked_distillation

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """A teacher of three classes, trained for some steps: its folder and its data."""
    home = tmp_path_factory.mktemp("teacher")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    x = torch.randn(30, 1, 8, 8, generator=generator) * 0.2 + labels.view(-1, 1, 1, 1) - 1
    save_file({"x": x, "label": labels}, home / "data.safetensors")
    recipe = recipes.checked(
        {
            "name": "teacher",
            "licence": "CC0-1.0",
            "data": {
                "kind": "tensors",
                "path": str(home / "data.safetensors"),
                "classes": list(CLASSES),
                "holdout": 0.0,
            },
            "model": {
                "widths": [8, 8],
                "groups": 4,
                "head": 8,
                "train": {"steps": 30, "batch": 8, "warmup": 1, "rate": 1e-2},
            },
            "weak": {"widths": [8, 8], "groups": 4, "head": 8, "train": {"steps": 3, "batch": 8}},
            "classifier": {"widths": [8, 8], "train": {"steps": 3, "batch": 4}},
            "export": {"steps": 8, "guidance": "cfg(2)", "snapshots": False},
        },
        "here",
    )
    assert train(recipe, home)
    assemble(recipe, home)
    return home / "teacher"


class Rows(nn.Module):
    """Conditions whose rows are the network's input; the null is the third class."""

    parts = {"label": None}

    def null_rows(self, name):
        return torch.tensor(2)

    def null(self, batch):
        return Condition(label=torch.full((batch,), 2))

    def forward(self, rows):
        return Condition(label=rows["label"])


def recipe_of(teacher, **student):
    more = {"guidance": "cfg(w)", "scale": [1, 4], "steps": 2, "start": 8}
    train = {"steps": 4, "batch": 6, "warmup": 1, "rate": 1e-3, "decay": 0.5}
    content = {"teacher": str(teacher), "train": train, **more, **student}
    return checked_distillation(
        {"name": "pupil", "student": {k: v for k, v in content.items() if v is not None}}, "here"
    )
