"""Students of a text model in latents of its own autoencoder, from its captions alone."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import guidestar as gs
from guidestar.cli import main
from guidestar.core.rng import Draw
from guidestar.data.latents import Latents, Unencoded
from guidestar.train.export import assemble
from guidestar.train.recipe import schema as recipes
from guidestar.train.run import train
from guidestar.train.students.data import student_source
from guidestar.train.students.recipe import checked_distillation

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
TRAIN = {"steps": 3, "batch": 4, "warmup": 1, "decay": 0.5}
TOWERS = {"width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny text model of latents, and the captioned pictures it was trained on."""
    root = tmp_path_factory.mktemp("latent")
    (root / "data").mkdir()
    rows = []
    for name, colour in COLOURS.items():
        for k in range(4):
            picture = Image.new("RGB", (16, 16), "white")
            picture.paste(colour, (k, k, 8 + k, 8 + k))
            picture.save(root / "data" / f"{name}-{k}.png")
            rows.append({"file_name": f"{name}-{k}.png", "text": [f"{name} square", f"a {name}"]})
    (root / "data" / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = recipes.checked(
        {
            "name": "tiny",
            "licence": "CC0-1.0",
            "data": {
                "path": str(root / "data"),
                "test": str(root / "data"),
                "size": 16,
                "channels": 3,
                "columns": {"text": "text"},
                "vae": "autoencoder",
            },
            "conditions": {"text": {"encoder": "clip", "dropout": 0.2}},
            "schedule": {"kind": "flow"},
            "autoencoder": {
                "network": "AutoencoderKL",
                "widths": [8, 8],
                "latent_channels": 2,
                "groups": 4,
                "train": TRAIN,
            },
            "clip": {
                **TOWERS,
                "text_heads": 2,
                "embed": 12,
                "vocabulary": 540,
                "length": 12,
                "train": TRAIN,
            },
            "model": {
                "network": "PixArtTransformer2DModel",
                "config": {
                    "num_layers": 1,
                    "num_attention_heads": 2,
                    "attention_head_dim": 16,
                    "patch_size": 2,
                    "interpolation_scale": 1,
                },
                "train": {**TRAIN, "rate": 1e-2},
            },
            "export": {"guidance": "cfg(3)", "steps": 4, "snapshots": False},
        },
        "here",
    )
    assert train(recipe, root / "out")
    assemble(recipe, root / "out")
    return root


def recipe_of(home, *, data=None, **student):
    given = {"method": "trajectory", "steps": 2, "start": 4, "paths": 8, "rank": 2, "train": TRAIN}
    return checked_distillation(
        {
            "name": "pupil",
            "student": {"teacher": str(home / "out" / "tiny"), **given, **student},
            **({} if data is None else {"data": data}),
        },
        "here",
    )


def test_runs_need_captions_and_no_encoding(home):
    model = gs.load(home / "out" / "tiny")
    source = student_source(recipe_of(home), model)
    assert isinstance(source, Unencoded) and tuple(source.shape) == tuple(model.shape)
    assert source.size == 12  # the whole of the training pictures, as others measure


def test_other_methods_learn_on_latents_of_the_models_own_autoencoder(home):
    model = gs.load(home / "out" / "tiny")
    more = {"method": "guided", "start": 8, "paths": 1}
    source = student_source(recipe_of(home, **more), model)
    assert isinstance(source, Latents)
    draw = Draw([3, 7])
    expected = model.from_images(source.pictures.batch([3, 7], draw)[0])
    found = source.batch([3, 7], draw)[0]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_a_place_alone_is_read_as_the_teachers_data_were(home):
    from guidestar.train.students.data import data_of

    model = gs.load(home / "out" / "tiny")
    data = data_of(recipe_of(home, data={"kind": "images", "path": "elsewhere"}), model)
    assert (data.path, data.size, data.test, data.holdout) == ("elsewhere", 16, None, 0.0)
    assert data.columns == {"text": "text"} and data.vae == "autoencoder"
    own = {"kind": "images", "path": "elsewhere", "size": 8, "columns": {"text": "text"}}
    assert data_of(recipe_of(home, data=own), model).vae is None


def test_a_text_model_of_latents_is_distilled_by_one_command(home, capsys):
    teacher, out = home / "out" / "tiny", home / "student"
    command = f"distill {teacher} --guidance cfg(2) --steps 2 --start 4 --paths 8 --rank 2"
    options = f"--train-steps 4 --batch 4 --data {home / 'data'} --variant 2-step --out {out}"
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), *options.split()])
    assert stop.value.code == 0, capsys.readouterr().err
    place = teacher / "variants" / "2-step"
    assert {p.name for p in place.iterdir()} == {
        "difference.safetensors",
        "guidance.toml",
        "guidestar.json",
        "README.md",
    }  # captions are encoded by the teacher's own text tower, which no student changes
    student = gs.load(teacher, variant="2-step")
    samples = student.sample(["red square", "a blue"], seeds=[1, 2])
    assert samples.nfe == 2 and tuple(samples.images.shape) == (2, 3, 16, 16)
    assert student.card["student"]["guidance"] == "cfg(2)"
    assert student.card["distillation"]["student"]["rank"] == 2
