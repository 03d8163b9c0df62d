"""Editing of motions: what is kept is kept exactly, and targets are reached."""

import pytest
import torch

from guidestar import VP
from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.diffusers.read.network import denoiser
from guidestar.diffusers.read.scheduler import Process
from guidestar.model.model import Model
from guidestar.model.motion_editing import keep, known_mask, known_motion, observe_motion, reach
from guidestar.motion import parse_bvh
from guidestar.networks.lengths import LengthEncoder
from guidestar.networks.motion import MotionTransformer
from guidestar.sampling import DDPM, Heun
from helpers.motions import walker, write_walkers

T = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_walkers(tmp_path_factory.mktemp("edit") / "clips", each=1)
    return motion_folder(folder, MotionSettings(frames=T, names="{action}_{}"))


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    net = MotionTransformer(data.shape[1], T, width=16, depth=1, heads=2).eval()
    process = Process(schedule=VP.cosine(50), predicts="x0")
    scale = {"mean": data.scale.mean.tolist(), "std": data.scale.std.tolist()}
    return Model(
        name="mover",
        denoiser=denoiser(net, process),
        schedule=process.schedule,
        shape=data.shape,
        encoder=LengthEncoder(T, 4),
        decode=data.scale.undo,
        defaults={"steps": 5, "solver": "ddim", "grid": "uniform"},
        card={"motion": data.body.to_json(), "scale": scale},
    )


CLIP = parse_bvh(walker(40, speed=1.5))


def test_a_motion_is_known_in_the_models_units(model, data, tmp_path):
    numbers = data.body.encode(CLIP)
    wanted = (numbers[6 : 6 + T] - data.scale.mean) / data.scale.std
    torch.testing.assert_close(known_motion(model, CLIP, 6)[0], wanted)
    (tmp_path / "clip.bvh").write_text(walker(40, speed=1.5))
    for given in (tmp_path / "clip.bvh", str(tmp_path / "clip.bvh")):
        torch.testing.assert_close(known_motion(model, given, 6)[0], wanted)
    short = known_motion(model, CLIP, 30)[0]
    assert bool(short[:10].any(1).all()) and not short[10:].any()
    for start in (-1, 40):
        with pytest.raises(ValueError, match=f"start must be a frame from 0 to 39, not {start}"):
            known_motion(model, CLIP, start)


def test_kept_frames_and_joints_are_those_of_the_motion(model):
    frames = [*range(4), *range(12, T)]
    known = known_motion(model, CLIP)[0]
    x = model.sample(seeds=[0, 1], solver=keep(model, CLIP, frames=frames)).x
    torch.testing.assert_close(x[:, frames], known[frames].expand(2, -1, -1))
    assert float((x[:, 4:12] - known[4:12]).abs().min(0).values.mean()) > 0.01
    legs = ("Hips", "Leg_L", "Foot_L", "Leg_R", "Foot_R")
    kept = known_mask(model, joints=legs)[0].bool()
    x = model.sample(seeds=[0], solver=keep(model, CLIP, joints=legs)).x[0]
    torch.testing.assert_close(x[:, kept], known[:, kept])
    assert not torch.allclose(x[:, ~kept], known[:, ~kept], atol=0.01)


def test_masks_join_frames_and_joints(model, data):
    mask = known_mask(model, frames=[2], joints=["Head"])
    assert mask.shape == data.shape and int(mask.sum()) == 3 + 6 + 3 and bool(mask[2].any())
    assert known_mask(model).all()
    with pytest.raises(ValueError, match="of 'mover' has the frames 0 to 15, not 16"):
        known_mask(model, frames=[16])
    with pytest.raises(ValueError, match="no joint 'Tail'; its joints are Hips, Spine, Head"):
        keep(model, CLIP, joints=["Tail"])


def test_numbers_of_a_joint_by_part(data):
    """Each number of a frame belongs to its joint: turn, walk and height to the root."""
    form = data.body.format
    names = list(form.skeleton.names)
    for k, name in enumerate(names):
        mask = form.mask([name])
        for part, where in form.parts.items():
            found = mask[where]
            if part in ("turn", "walk", "height"):
                assert found.tolist() == [float(k == 0)] * len(found)
                continue
            of = (
                list(form.feet) if part == "contacts" else [*range(part == "positions", len(names))]
            )
            width = len(found) // len(of)
            assert width == {"contacts": 1, "positions": 3, "rotations": 6, "velocities": 3}[part]
            assert found.tolist() == [float(owner == k) for owner in of for _ in range(width)]
    assert form.mask(names).all() and not form.mask([]).any()


def test_frames_that_are_kept_up_to_the_ends(model):
    for frame in (0, 15):
        mask = known_mask(model, frames=[frame])
        assert mask[frame].all() and int(mask.any(1).sum()) == 1
    assert not known_mask(model, frames=()).any() and known_mask(model, frames=range(16)).all()
    for frame in (-1, 16):
        with pytest.raises(ValueError, match=f"has the frames 0 to 15, not {frame}"):
            known_mask(model, frames=[3, frame])
        with pytest.raises(ValueError, match=f"has the frames 0 to 15, not {frame}"):
            reach(model, "Head", {3: (0, 0, 0), frame: (0, 0, 0)})
    found = keep(model, CLIP, frames=[1], joints=["Head"], start=3, solver=Heun())
    assert found.solver == Heun() and keep(model, CLIP).solver == DDPM()
    assert torch.equal(found.known, known_motion(model, CLIP, 3))  # type: ignore[arg-type]
    assert torch.equal(found.mask, known_mask(model, frames=[1], joints=["Head"]))  # type: ignore[arg-type]
    assert torch.equal(keep(model, CLIP).known, known_motion(model, CLIP, 0))  # type: ignore[arg-type]
    last = known_motion(model, CLIP, 39)[0]
    assert last[0].any() and not last[1:].any()
    observed = observe_motion(model, CLIP, joints=["Head"], start=3)
    assert observed.noise == 0.0 and torch.equal(observed.y, known_motion(model, CLIP, 3))
    assert torch.equal(observed.operator.mask, known_mask(model, joints=["Head"]))  # type: ignore[union-attr]


def test_an_observation_is_the_distance_to_what_is_known(model):
    observed = observe_motion(model, CLIP, frames=[0, 1], noise=0.1)
    x = torch.randn(2, *model.shape)
    wanted = (known_motion(model, CLIP)[0, :2] - x[:, :2]).flatten(1).norm(dim=1)
    torch.testing.assert_close(observed(x), wanted)
    assert observed.noise == 0.1
    run = {"guidance": "uncond + pigdm(1)", "losses": {"loss": observed}, "steps": 3}
    assert model.sample(seeds=[0], **run).x.isfinite().all()


def test_a_target_is_the_distance_of_the_joint(model, data):
    x = torch.stack([known_motion(model, CLIP)[0], torch.randn(model.shape)])
    joints = data.body.format.decode(data.scale.undo(x)).joints(data.body.format.skeleton)
    loss = reach(model, "Foot_L", {3: (10.0, None, 40.0), 9: (None, 5.0, None)})(x)
    foot = joints[:, :, 4]
    one = (foot[:, 3, 0] - 10) ** 2 + (foot[:, 3, 2] - 40) ** 2
    wanted = ((one + (foot[:, 9, 1] - 5) ** 2) / 2).sqrt() / data.body.format.size
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reach(model, "Head", {5: (0, 0, 0)})(y).sum(), y)
    assert bool(slope.isfinite().all()) and bool(slope.abs().sum() > 0)
    assert not slope[:, 6:].any()  # later frames move no earlier joint
    # The first frame can have a target; what is reached has the distance 1e-6, and a slope of 0.
    hips = joints[:, :, 0][:1, 0].tolist()[0]
    there = reach(model, "Hips", {0: (hips[0], None, hips[2])})
    height = data.body.format.size
    torch.testing.assert_close(there(x[:1]), torch.tensor([1e-6 / height]), rtol=1e-2, atol=0)
    (slope,) = torch.autograd.grad(there(y).sum(), y)
    assert bool(slope.isfinite().all())
    free = reach(model, "Hips", {3: (None, None, None), 1: (1.0, None, None)})
    off = ((foot.new_tensor(1.0) - joints[:, 1, 0, 0]) ** 2 / 2).sqrt() / height
    torch.testing.assert_close(free(x), off, rtol=1e-4, atol=1e-6)
    for at, words in (({16: (0, 0, 0)}, "0 to 15, not 16"), ({}, "at least one target is needed")):
        with pytest.raises(ValueError, match=words):
            reach(model, "Head", at)
    with pytest.raises(ValueError, match="no joint 'Tail'; its joints are Hips, Spine, Head"):
        reach(model, "Tail", {1: (0, 0, 0)})


def test_guidance_by_a_target_brings_the_joint_nearer(model):
    loss = reach(model, "Hips", {12: (0.0, None, 90.0)})
    plain = model.sample(seeds=[0, 1], guidance="uncond").x
    moved = model.sample(seeds=[0, 1], guidance="uncond + dps(0.5)", losses={"loss": loss}).x
    assert bool((loss(moved) < loss(plain)).all())
