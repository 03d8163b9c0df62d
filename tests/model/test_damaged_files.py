"""Every file that is read, damaged in many ways: one line of ours that names it, and never another
library's exception.

GUIDESTAR_MUTATIONS sets how many mutations are tried (2,000), GUIDESTAR_SEED which. Files that take
long to read, as weights stand beside them, get a third of what others get.
"""

import json
import os
import random
import resource
import shutil
import time
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from guidestar.diffusers import guidance_file as recipe
from guidestar.diffusers.read.clip import read_clip, read_pixels, read_tower
from guidestar.diffusers.read.encoders import read_condition
from guidestar.diffusers.read.pipeline import readable_of
from guidestar.diffusers.read.safetensors_io import read_module, read_tensors
from guidestar.diffusers.read.scheduler import read_scheduler
from guidestar.diffusers.read.text_models import read_text_model
from guidestar.diffusers.read.towers import read_tokenizer
from guidestar.diffusers.read.vae import read_decoder
from guidestar.io.documents import MOST_DEPTH, read_json, read_text, read_toml
from guidestar.model.folder import load
from guidestar.model.folder_reading import _classifiers, _networks
from guidestar.model.manifest import read_about
from guidestar.model.shipped import SHIPPED
from guidestar.networks.clip import Vision
from guidestar.sampling.grids import log_snr
from guidestar.train.recipe.cascade import read_cascade
from guidestar.train.recipe.schema import read_recipe as _read_recipe
from guidestar.train.students.recipe import read_distillation
from helpers.pipeline_folders import flux, sd

COUNT = int(os.environ.get("GUIDESTAR_MUTATIONS", "2000"))
SEED = os.environ.get("GUIDESTAR_SEED", "0")
RECIPES = Path(__file__).parents[2] / "recipes"


def read_recipe(file):
    if read_cascade(file) is None:
        _read_recipe(file, trust=True)


def reader_of(file):
    return read_distillation if "[student]" in file.read_text() else read_recipe


def scheduler(file):
    log_snr(read_scheduler(file.parent).schedule, 4)


def network(file):
    read_module(file.parent, known=_networks())


def classifier(file):
    net = read_module(file.parent, known=_classifiers())
    assert net(torch.zeros(1, 1, 28, 28), LEVEL).shape == (1, 10)


def condition(file):
    encoder = read_condition(file.parent)
    encoder.null(2)
    [encoder.encode([name]) for name in getattr(encoder, "classes", ("a",))[:1]]


def text_encoder(file):
    read_text_model(file.parent, "CLIPText")


def t5(file):
    read_text_model(file.parent, "T5")


def tower(file):
    size = read_tower(file.parent).tower.config.image_size
    assert size == {"clip": 8, "clean_clip": 64}[file.parent.name]  # of latents, and of pictures


def judge(file):
    clip = read_clip(file.parent)
    assert clip.embed_captions(["a cat"]).isfinite().all()


def pixels(file):
    Vision(TOWER, **read_pixels(file.parent))(torch.zeros(1, 3, 16, 16))


def tokenizer(file):
    read_tokenizer(file.parent)


def decoder(file):
    read_decoder(file.parent)


def about(file):
    read_about(file.parent)


def index(file):
    readable_of(file.parent)


TOWER = CLIPVisionModelWithProjection(
    CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
)
LEVEL = read_scheduler(SHIPPED / "fashion-mnist").schedule(500.0)
READERS = {
    ("fashion-mnist", "guidestar.json"): about,
    ("fashion-mnist", "scheduler/scheduler_config.json"): scheduler,
    ("fashion-mnist", "unet/config.json"): network,
    ("fashion-mnist", "condition/config.json"): condition,
    ("fashion-mnist", "classifier/config.json"): classifier,
    ("fashion-mnist", "judge/config.json"): classifier,
    ("fashion-mnist", "weak/unet/config.json"): network,
    ("fashion-mnist", "weak/condition/config.json"): condition,
    ("emoji", "guidestar.json"): about,
    ("emoji", "scheduler/scheduler_config.json"): scheduler,
    ("emoji", "condition/config.json"): condition,
    ("emoji", "transformer/config.json"): network,
    ("emoji", "text_encoder/config.json"): text_encoder,
    ("emoji", "tokenizer/tokenizer_config.json"): tokenizer,
    ("emoji", "tokenizer/tokenizer.json"): tokenizer,
    ("emoji", "clip/config.json"): tower,
    ("emoji", "clip/preprocessor_config.json"): pixels,
    ("emoji", "clean_clip/config.json"): tower,
    ("emoji", "vae/config.json"): decoder,
    ("emoji", "judge/config.json"): judge,
    ("sd", "model_index.json"): index,
    ("sd", "unet/config.json"): network,
    ("sd", "vae/config.json"): decoder,
    ("sd", "text_encoder/config.json"): text_encoder,
    ("sd", "tokenizer/tokenizer_config.json"): tokenizer,
    ("sd", "tokenizer/tokenizer.json"): tokenizer,
    ("sd", "scheduler/scheduler_config.json"): scheduler,
    ("flux", "model_index.json"): index,
    ("flux", "transformer/config.json"): network,
    ("flux", "text_encoder_2/config.json"): t5,
    ("flux", "scheduler/scheduler_config.json"): scheduler,
    ("single", "guidance.toml"): recipe.read_guidance,
    ("single", "tensors.safetensors"): read_tensors,
    ("single", "model.safetensors.index.json"): read_tensors,
    **{("single", file.name): reader_of(file) for file in sorted(RECIPES.glob("*.toml"))},
}

WITH_WEIGHTS = (network, text_encoder, t5, tower, judge, decoder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("folders")
    for name in ("fashion-mnist", "emoji"):
        shutil.copytree(SHIPPED / name, root / name)
    sd().save_pretrained(root / "sd")
    flux().save_pretrained(root / "flux")
    (root / "single").mkdir()
    recipe.write(
        recipe.GuidanceRecipe(
            guidance="cfg(7.5, interval=(0.3, 5.4)) + pag(3) | rescale(0.7)",
            steps=20,
            solver="ddim",
            negative="blurry",
        ),
        root / "single" / "guidance.toml",
    )
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4)}, root / "single" / "tensors.safetensors")
    (root / "single" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "tensors.safetensors", "b": "tensors.safetensors"}})
    )
    for file in RECIPES.glob("*.toml"):
        shutil.copy(file, root / "single")
    return root


VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10**9,
        10**6,
        -(10**9),
        2**31,
        2**63,
        10**400,
        0.5,
        -0.5,
        1.5,
        1e-300,
        1e300,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *(
        "",
        "a",
        "0",
        "10",
        "../..",
        "/etc/passwd",
        "\u0000",
        "a\nb",
        "\ud800",
        "x" * 10_000,
        "os:system",
        "silu",
        "é" * 300,
        "NaN",
    ),
    *(
        [],
        [1],
        [0],
        ["a"],
        [None],
        [[]],
        [1, 2, 3],
        [-1, 10**9],
        [1.5],
        [True],
        [[1, 2], [3]],
        [10**9] * 3,
        [1] * 2000,
    ),
    *({}, {"a": 1}, {"0": "a"}, {"_class_name": "x"}, {"a": {"a": {"a": []}}}),
]


def places(tree, path=()):
    """List every place of a tree of objects and lists."""
    children = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [p for key, child in children for p in [(*path, key), *places(child, (*path, key))]]


def mutate_tree(tree, rng):
    every = places(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, last = rng.choice(every)
        node = tree
        try:
            for key in path:
                node = node[key]
            how = rng.random()
            if how < 0.75:
                node[last] = rng.choice(VALUES)
            elif how < 0.9:
                del node[last]
            else:
                node[rng.choice((last, "a", "\ud800", ""))] = node[last]
        except (KeyError, IndexError, TypeError):
            continue
    return tree


def deep(rng):
    n = rng.choice((MOST_DEPTH + 1, 500, 5000, 200_000))
    return rng.choice(('{"a":' * n + "1" + "}" * n, "[" * n, '{"a":' + "[" * n + "]" * n + "}"))


def mutate_bytes(raw, rng):
    at = rng.randrange(len(raw) + 1)
    return rng.choice(
        (
            lambda: raw[:at],
            lambda: raw[:at] + rng.randbytes(rng.choice((1, 2, 8))) + raw[at:],
            lambda: raw[:at] + rng.randbytes(1) + raw[at + 1 :],
            lambda: raw[:at] + raw[at + rng.choice((1, 10)) :],
            lambda: b"",
            lambda: b"\xef\xbb\xbf" + raw,
            lambda: raw.decode("latin-1").encode("utf-16"),
            lambda: b"[]",
            lambda: deep(rng).encode(),
            lambda: raw.replace(b"{", b'{"_class_name": "a", "_class_name": "b",', 1),
            lambda: b"\x00" * 100,
            lambda: raw.replace(b'"', b"'"),
            lambda: raw.replace(b"1", b"9" * 5000, 1),
        )
    )()


def toml_of(value):
    """Write a value as TOML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps("null" if value is None else value, ensure_ascii=True)


def mutated(raw, suffix, rng):
    if suffix == ".safetensors" or rng.random() < 0.2:
        return mutate_bytes(raw, rng)
    if suffix == ".json":
        return json.dumps(mutate_tree(json.loads(raw), rng)).encode()
    tree = mutate_tree(tomllib.loads(raw.decode()), rng)
    return "".join(f"{json.dumps(k)} = {toml_of(v)}\n" for k, v in tree.items()).encode(
        errors="surrogatepass"
    )


def raw_exception(read, file):
    """Read a damaged file; return what is not as it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(file)
    except ValueError as error:
        said = str(error)
        if type(error) not in (ValueError,) and not type(error).__module__.startswith("guidestar"):
            return f"{type(error).__name__}: {said[:200]}"
        if (
            not said.startswith(str(file.parent))
            or "\n" in said
            or len(said) > 2000
            or not said.isprintable()
        ):
            return f"message: {said[:600]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.mark.slow
def test_no_damage_shows_another_librarys_exception(folders):
    light = [name for name in sorted(READERS) if READERS[name] not in WITH_WEIGHTS]
    names = sorted(READERS) + 2 * light
    found, slow = [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(COUNT):
        rng = random.Random(f"{SEED}/{i}")
        name = names[i % len(names)]
        file = folders / name[0] / name[1]
        raw = file.read_bytes()
        damaged = mutated(raw, file.suffix, rng)
        start = time.process_time()
        try:
            file.write_bytes(damaged)
            if wrong := raw_exception(READERS[name], file):
                found.append(f"{i} {'/'.join(name)}: {wrong}")
        finally:
            file.write_bytes(raw)
        if (spent := time.process_time() - start) > 3:
            slow.append(f"{i} {'/'.join(name)}: {spent:.1f} s")
    assert not found, f"{len(found)} of {COUNT}:\n" + "\n".join(found)
    assert not slow, "\n".join(slow)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: 1 GB


@pytest.mark.slow
def test_what_is_whole_is_read_by_every_reader(folders):
    for name, read in READERS.items():
        read(folders / name[0] / name[1])


@pytest.mark.parametrize("read", [read_json, read_toml, read_text])
def test_what_is_no_file(read, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 2**40)
    says = {
        "folder": "should be a file, not a folder; give a file in it",
        "pipe": "should be a file, not a pipe or a device; save it as a file first",
        "large": "has 1,099,511,627,776 bytes; at most 67,108,864 are read, so make it smaller",
        "nothing": "there is no such file",
        "x" * 300: "cannot be read (File name too long)",
    }
    for name, said in says.items():
        with pytest.raises(ValueError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {said}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "not readable as JSON (the key 'c' is repeated)"),
        (b'{"a": "\xe9"}', "not UTF-8 (byte 7); save it as UTF-8"),
        (b'{"a": "\\ud800"}', "not readable as JSON (the text '\\ud800' holds half a character)"),
        (b"[1]", "should hold a JSON object, not a list"),
        (
            b"{" * 3,
            "not readable as JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1))",
        ),
        (b'{"a":' * 64 + b"1" + b"}" * 64, "not readable as JSON (nested more than 64 deep)"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 64 deep"),
    ],
    ids=range(7),
)
def test_json_that_is_refused(content, says, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(file)
    assert str(caught.value) == f"{file}: {says}"


def test_what_is_unusual_and_right(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(
        b'\xef\xbb\xbf{"lambda_min_clipped": -Infinity, "model_max_length": '
        b'1000000000000000019884624838656, "name": "\\ud83d\\ude00"}'
    )
    assert read_json(file) == {
        "lambda_min_clipped": -float("inf"),
        "model_max_length": 1000000000000000019884624838656,
        "name": "😀",
    }
    file.write_bytes(b'{"a":' * 63 + b"1" + b"}" * 63)
    assert read_json(file)["a"]["a"]


def test_a_variant_without_its_difference_names_that_file(tmp_path):
    """A download that was cut off: it is not the network that is missing."""
    folder = tmp_path / "emoji"
    folder.mkdir()
    for part in (SHIPPED / "emoji").iterdir():
        if part.name != "variants":
            (folder / part.name).symlink_to(part)
    home = folder / "variants" / "4-step"
    home.mkdir(parents=True)
    (home / "guidestar.json").write_text("{}")
    message = (
        r"variants/4-step/difference\.safetensors is missing, and the variant has no network of "
        "its own in its place; fetch or distil it again"
    )
    with pytest.raises(ValueError, match=message):
        load(folder, variant="4-step")
