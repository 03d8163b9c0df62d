"""Lines of refusal that only odd inputs reach: skeletons and BVH files, published networks,
folders, keys, and arguments.
"""

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from guidestar.apps.demo import demo
from guidestar.apps.observe import read_observation
from guidestar.checkpoints.adm_blocks import SelfAttention
from guidestar.checkpoints.adm_networks import ADMClassifier, ClassifierSettings
from guidestar.core.arguments import check_arguments, check_counts
from guidestar.data import shards
from guidestar.data.layout import _captions
from guidestar.data.shards import PictureFormat, Shards
from guidestar.diffusers.export import network_of
from guidestar.diffusers.guide.pipelines import _refuse_caches, _refuse_own
from guidestar.diffusers.read.text_encoder import TextEncoder
from guidestar.guidance import parse
from guidestar.io.documents import read_toml
from guidestar.motion.bvh import MOST_JOINTS, parse_bvh
from guidestar.motion.skeleton import Skeleton
from guidestar.serve.engine import Engine
from guidestar.serve.web.keys import LEAST, Keys, read_keys
from helpers.served import toy_model

SMALL = {"image_size": 16, "channel_mult": (1, 2), "width": 8, "depth": 1, "groups": 4,
         "num_head_channels": 4, "classes": 5}  # fmt: skip


def test_skeletons_that_are_none():
    one: Any = {"names": ("a",), "parents": (-1,), "offsets": ((0, 0, 0),)}
    assert Skeleton(**one).count == 1
    line = "names, parents and offsets of a skeleton must be as many, at least 1"
    for more in (
        {"names": ("a", "b")},
        {"parents": (-1, 0)},
        {"offsets": ()},
        {"names": (), "parents": (), "offsets": ()},
    ):
        with pytest.raises(ValueError, match=line):
            Skeleton(**{**one, **more})
    two: Any = {"names": ("a", "b", "c"), "offsets": ((0, 0, 0),) * 3}
    assert Skeleton(**two, parents=(-1, 0, 0)).count == 3
    for parents, text in (
        ((0, 0, 1), "of joint 'a' is 0; the first joint has −1, every other one a joint before it"),
        ((-1, 1, 0), "of joint 'b' is 1"),
        ((-1, -1, 0), "of joint 'b' is -1"),
        ((-1, 0, 2), "of joint 'c' is 2"),
    ):
        with pytest.raises(ValueError, match=f"the parent {text}"):
            Skeleton(**two, parents=parents)
    assert Skeleton(**two, parents=(-1, 0, 1)).index("c") == 2
    with pytest.raises(ValueError, match="the skeleton has no joint 'd'; its joints are a, b, c"):
        Skeleton(**two, parents=(-1, 0, 1)).index("d")


JOINT = "OFFSET 0 0 0 CHANNELS 3 Xrotation Yrotation Zrotation"
MOTION = "\nMOTION\nFrames: 1\nFrame Time: 0.1\n"


def test_hierarchies_that_are_none():
    good = f"HIERARCHY ROOT a {{ {JOINT} End Site {{ OFFSET 0 1 0 }} }}" + MOTION + "1 2 3\n"
    (joint,) = parse_bvh(good).joints
    assert (joint.name, joint.parent, joint.end) == ("a", -1, (0.0, 1.0, 0.0))
    for old, new, line in (
        ("HIERARCHY", "TREE", 'expected "HIERARCHY", not "TREE"'),
        ("ROOT", "JOINT", 'expected "ROOT", not "JOINT"'),
        ("Site", "Place", 'expected "SITE", not "Place"'),
        ("0 1 0", "0 x 0", 'expected a number, not "x"'),
        ("0 1 0", "0 inf 0", 'expected a finite number, not "inf"'),
        ("CHANNELS 3", "CHANNELS 7", "a joint has 0 to 6 channels, not 7"),
        ("CHANNELS 3", "CHANNELS -1", "a joint has 0 to 6 channels, not -1"),
        ("End", "Other", '"Other" cannot stand within a joint'),
    ):
        with pytest.raises(ValueError, match=line):
            parse_bvh(good.replace(old, new, 1))


@pytest.mark.parametrize("count", [MOST_JOINTS, MOST_JOINTS + 1])
def test_as_many_joints_as_may_be(count):
    opened = "".join(f"JOINT j{k} {{ OFFSET 0 1 0 " for k in range(1, count))
    text = f"HIERARCHY ROOT a {{ {JOINT} {opened}" + "} " * count + MOTION + "1 2 3\n"
    if count == MOST_JOINTS:
        assert len(parse_bvh(text).joints) == count
    else:
        with pytest.raises(ValueError, match=f"more than {MOST_JOINTS} joints"):
            parse_bvh(text)


def test_published_networks_that_cannot_be():
    with pytest.raises(ValueError, match="a width of 6 has no heads of 4; give another num_head"):
        SelfAttention(6, heads=1, head=4, new_order=False, groups=2)
    assert SelfAttention(8, heads=1, head=4, new_order=False, groups=2)
    given: Any = SMALL
    with pytest.raises(ValueError, match=r"the pool must be attention, .*, not 'other'"):
        ADMClassifier(ClassifierSettings(**{**given, "pool": "other"}))
    with pytest.raises(ValueError, match="the widths of a network for 17 pixels are not known"):
        ADMClassifier(ClassifierSettings(**{**given, "channel_mult": None, "image_size": 17}))
    net = ADMClassifier(ClassifierSettings(**{**given, "pool": "adaptive"}))
    with pytest.raises(ValueError, match="a noise-aware classifier needs the noise level"):
        net.log_prob(torch.zeros(1, 3, 16, 16), None, torch.zeros(1, dtype=torch.long))


@dataclass(frozen=True)
class Term:
    scale: float = 1.0
    count: int = 1
    most: int | None = None
    names: tuple[str, ...] = ()
    kind: Literal["a", 1] = "a"
    size: tuple[int, int] = (1, 1)


def test_arguments_by_the_name_of_what_takes_them():
    names = ("scale", "count", "most", "names", "kind", "size")
    for good in ({}, {"scale": 2}, {"most": 3}, {"names": ["x"]}, {"kind": 1}, {"size": (2, 3)}):
        check_arguments(Term(**good), "term", *names)
    for bad in (
        {"scale": "x"}, {"scale": True}, {"count": 1.0}, {"count": True}, {"most": "x"},
        {"names": (1,)}, {"names": "x"}, {"kind": "b"}, {"kind": 1.0}, {"kind": True},
        {"size": (1, 2, 3)}, {"size": 3},
    ):  # fmt: skip
        (name,) = bad
        with pytest.raises(ValueError, match=f"term: {name} must be .*, not "):
            check_arguments(Term(**bad), "term", *names)
        check_arguments(Term(**bad), "term", *(n for n in names if n != name))


def test_counts_of_terms_up_to_their_bound():
    for good in ({}, {"count": 1000}, {"most": None}, {"most": 1000}, {"scale": 1e6}):
        check_counts(Term(**good), "term")
    for bad in ({"count": 1001}, {"most": 1001}):
        (name,) = bad
        with pytest.raises(ValueError, match=f"term: {name} must be at most 1,000, not 1,001"):
            check_counts(Term(**bad), "term")
    with pytest.raises(ValueError, match=r"term: most must be .*, not 1.5"):
        check_counts(Term(most=1.5), "term")  # type: ignore[arg-type]


def test_captions_of_some_pictures(tmp_path):
    files = [tmp_path / f"{n}.png" for n in "abc"]
    assert _captions(tmp_path, files, "pictures") is None
    (tmp_path / "b.txt").write_text(" a cat \n")
    line = r"1 of 3 pictures have a caption beside them \(.txt\), but 'a.png' has none; add the"
    with pytest.raises(ValueError, match=line):
        _captions(tmp_path, files, "pictures")
    (tmp_path / "a.txt").write_text(" ")
    (tmp_path / "c.txt").write_text("b")
    assert _captions(tmp_path, files, "pictures") == [None, "a cat", "b"]


def test_what_cannot_be_written_or_guided():
    with pytest.raises(ValueError, match=r"a Linear cannot be written; only a guidestar\.Network"):
        network_of(nn.Linear(1, 1))  # type: ignore[arg-type]
    pipe: Any = SimpleNamespace(do_perturbed_attention_guidance=True)
    for quiet in ({}, {"pag_scale": 0}):
        _refuse_own(pipe, quiet)
    _refuse_own(SimpleNamespace(), {"pag_scale": 3.0})  # type: ignore[arg-type]
    line = r"makes a perturbed pass of its own; give pag_scale=0, and write pag\(3\) in the"
    with pytest.raises(ValueError, match=line):
        _refuse_own(pipe, {"pag_scale": 3.0})
    text: Any = nn.Linear(1, 1)
    text.config = SimpleNamespace(hidden_size=4, projection_dim=6)
    made = TextEncoder(text, SimpleNamespace())  # type: ignore[arg-type]
    assert (made.width, made.layer, made.output, made.mask) == (4, "last", "states", False)
    with pytest.raises(ValueError, match='output = "projected" needs CLIP with its projection'):
        TextEncoder(text, SimpleNamespace(), output="projected")  # type: ignore[arg-type]
    text.text_projection = nn.Linear(1, 1)
    assert TextEncoder(text, SimpleNamespace(), output="projected").width == 6  # type: ignore[arg-type]


def test_networks_with_a_cache(monkeypatch):
    from guidestar.diffusers.guide import pipelines

    net = SimpleNamespace(is_cache_enabled=False)
    monkeypatch.setattr(pipelines, "networks", lambda pipe: {"unet": net, "other": object()})
    _refuse_caches(SimpleNamespace())  # type: ignore[arg-type]
    net.is_cache_enabled = True
    with pytest.raises(ValueError, match=r"the unet of SimpleNamespace has a cache .*disable_cach"):
        _refuse_caches(SimpleNamespace())  # type: ignore[arg-type]


def test_files_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read: keys are lines of text"):
        read_keys(file)
    file.write_text(f"# {'x' * LEAST}\n\n{'k' * LEAST}\n")
    keys = read_keys(file)
    name = hashlib.sha256(b"k" * LEAST).hexdigest()[:12]
    assert keys.owner("k" * LEAST) == f"key-{name}" and keys.owner("x" * LEAST) is None
    assert keys and not Keys() and Keys().owner("") is None
    assert Keys(["a", "b"]).owner("a") and Keys(["a", "b"]).owner("b")
    file.write_text(f"# c\n{'k' * LEAST}\n{'k' * (LEAST - 1)}\n")
    with pytest.raises(ValueError, match=f"keys:3: a key has at least {LEAST} characters"):
        read_keys(file)
    file.write_text("# c\n\n")
    with pytest.raises(ValueError, match="holds no key; write one a line"):
        read_keys(file)


def test_nested_toml(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("a = " + "[" * 3000 + "]" * 3000)
    with pytest.raises(ValueError, match=r"a\.toml: nested more than 64 deep"):
        read_toml(file)


def test_a_demonstration_needs_all_its_parts(tmp_path):
    whole: Any = {"judge": 1, "classes": ("a",), "classifiers": {"classifier": 1}, "name": "m"}
    for lacking in ({"judge": None}, {"classes": ()}, {"classifiers": {}}):
        model: Any = SimpleNamespace(**{**whole, **lacking})
        with pytest.raises(ValueError, match="as fashion-mnist has; 'm' lacks one of them"):
            demo(model, tmp_path)


def test_what_was_observed_goes_with_its_operator():
    guidance = parse("uncond + dps(1)")
    model: Any = SimpleNamespace()
    for pictures, operator in (([], "gray()"), (["a.png"], "")):
        with pytest.raises(ValueError, match="go together; give both"):
            read_observation(model, guidance, pictures, operator)
    with pytest.raises(ValueError, match="lowers a loss, and none was given; give the observed"):
        read_observation(model, guidance, [], "")
    assert read_observation(model, parse("cfg(2)"), [], "") is None


def test_shards_that_hold_no_pictures(monkeypatch, tmp_path):
    """Of `data/shards.py`."""
    sample: dict[str, Any] = {"__key__": "a", "txt": b"x", "cls": b"0"}
    monkeypatch.setattr(Shards, "_in_order", lambda self: iter([sample]))
    monkeypatch.setattr(shards, "_files", lambda path: [str(tmp_path / "a.tar")])
    line = r"a.tar: the first sample must hold a picture \(\..*\), not only txt, cls"
    make = lambda **more: Shards("p", PictureFormat(size=4), **more)
    with pytest.raises(ValueError, match=line):
        make()
    sample["png"] = b""
    with pytest.raises(ValueError, match=r"holds classes without names; give them as data.classes"):
        make()
    found = make(classes=("x", "y"))
    assert found.columns["label"].classes == ("x", "y") and "caption" in found.columns
    assert found.shape == (3, 4, 4) and found.size is None
    sample.pop("cls")
    sample.pop("txt")
    assert make().columns == {}


def test_an_engines_thread_ends_with_its_process():
    """Of `serve/engine.py`."""
    with Engine(toy_model()) as engine:
        assert engine._thread.daemon and engine._thread.name == "guidestar-toy"
