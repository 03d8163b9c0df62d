"""The objective of motions against its formula, term by term, with padding left out."""

import math

import pytest
import torch

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP
from guidestar.core.rng import Draw
from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.motion.rotations import from_6d
from guidestar.train.objectives.denoising import Conditional, Denoising
from guidestar.train.objectives.motion import MotionDenoising
from guidestar.train.objectives.weighting import MinSNR, Uniform
from helpers.motions import write_walkers

T = 8
LENGTHS = (8, 5)
LEVEL = VP.cosine(50)(20.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_walkers(tmp_path_factory.mktemp("motions") / "clips", each=1)
    return motion_folder(folder, MotionSettings(frames=T))


@pytest.fixture(scope="module")
def batch(data):
    x0 = data.batch([0, 3], Draw([0, 1]))[0]
    torch.manual_seed(1)
    made = x0 + 0.3 * torch.randn_like(x0)
    mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).float()
    return x0, made, mask


def objective(data, weighting, **weights):
    denoising = Denoising(
        schedule=VP.cosine(50), levels=lambda schedule, draw: LEVEL, weighting=weighting
    )
    return MotionDenoising(
        denoising=denoising, format=data.body.format, scale=data.scale, **weights
    )


def found(data, batch, weighting, **weights):
    x0, made, mask = batch
    net = lambda x_t, level, cond: made
    cond = Condition(frame_mask=mask)
    return objective(data, weighting, **weights)(net, x0, cond, Draw([0, 1]))


def in_units(data, x):
    return (x * data.scale.std + data.scale.mean).double()


def near(data, x):
    """Joints seen from the ground below the root, by forward kinematics, one after the other."""
    form, numbers = data.body.format, in_units(data, x)
    turns = from_6d(numbers[..., form.parts["rotations"]].unflatten(-1, (-1, 6)))
    height = numbers[..., form.parts["height"]]
    at = [torch.cat([0 * height, height, 0 * height], -1)]
    total = [turns[..., 0, :, :]]
    for j in range(1, form.skeleton.count):
        up = form.skeleton.parents[j]
        offset = torch.tensor(form.skeleton.offsets[j], dtype=torch.float64)
        at.append(at[up] + total[up] @ offset)
        total.append(total[up] @ turns[..., j, :, :])
    return torch.stack(at, -2)


def steps(data, x):
    """How far joints move in the frame of the earlier heading: R_y(turn) y_t + walk − y_(t−1)."""
    form, numbers, y = data.body.format, in_units(data, x), near(data, x)
    out = torch.zeros_like(y[:, 1:])
    for b in range(len(x)):
        for t in range(1, T):
            turn = float(numbers[b, t, form.parts["turn"]])
            c, s = math.cos(turn), math.sin(turn)
            rotation = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
            wx, wz = numbers[b, t, form.parts["walk"]].tolist()
            moved = torch.tensor([wx, 0, wz], dtype=torch.float64)
            out[b, t - 1] = y[b, t] @ rotation.T + moved - y[b, t - 1]
    return out


def wanted(data, batch, positions=0.0, velocities=0.0, contacts=0.0):
    """The loss without the level's weight, in loops over the frames of each motion."""
    x0, made, _ = batch
    form, std = data.body.format, data.scale.std
    unit, fast = (float(std[form.parts[p]][0]) for p in ("positions", "velocities"))
    y, true = near(data, made), near(data, x0)
    v, moved = steps(data, made), steps(data, x0)
    down = in_units(data, x0)[:, :, form.parts["contacts"]]
    losses = []
    for b, length in enumerate(LENGTHS):
        loss = float((made[b, :length] - x0[b, :length]).square().mean())
        loss += positions * float(((y - true)[b, :length] / unit).square().mean())
        loss += velocities * float(((v - moved)[b, : length - 1] / fast).square().mean())
        feet = v[b, : length - 1, list(form.feet)] * down[b, 1:length, :, None] / fast
        losses.append(loss + contacts * float(feet.square().mean()))
    return torch.tensor(losses)


@pytest.mark.parametrize(
    "weights",
    [
        *({}, {"positions": 2.0}, {"velocities": 0.7}, {"contacts": 3.0}),
        {"positions": 1.0, "velocities": 0.5, "contacts": 0.25},
    ],
)
def test_each_error_is_its_formula(data, batch, weights):
    close = lambda a, b: torch.testing.assert_close(a.double(), b.double(), rtol=2e-3, atol=1e-5)
    plain = found(data, batch, Uniform(space="x0"), **weights)
    close(plain, wanted(data, batch, **weights))
    snr = (LEVEL.alpha / LEVEL.sigma) ** 2
    close(found(data, batch, MinSNR(gamma=99.0), **weights), plain * snr)


def test_feet_of_the_data_stand_and_are_not_only_zeros(data, batch):
    down = in_units(data, batch[0])[:, :, data.body.format.parts["contacts"]]
    assert 0 < float(down.mean()) < 1


def test_a_contact_is_at_most_whole_and_at_least_none(data, batch):
    x0, made, mask = batch
    part = data.body.format.parts["contacts"]
    std, mean = data.scale.std[part], data.scale.mean[part]

    def feet(low, high):
        contacts = torch.where(in_units(data, x0)[..., part] > 0.5, high, low)
        other = x0.clone()
        other[..., part] = ((contacts - mean) / std).to(x0)
        given = (other, made, mask)
        return found(data, given, Uniform(space="x0"), contacts=2.0) - found(
            data, given, Uniform(space="x0")
        )

    torch.testing.assert_close(feet(-0.8, 1.9), feet(0.0, 1.0), rtol=1e-4, atol=1e-5)
    assert bool((feet(0.0, 1.0) > 1.5 * feet(0.0, 0.5)).any())


def test_padding_and_what_is_there_count_nothing(data, batch):
    x0, made, mask = batch
    other = torch.where(mask[..., None].bool(), made, torch.full_like(made, 7.0))
    kwargs = {"positions": 1.0, "velocities": 1.0, "contacts": 1.0}
    one = found(data, batch, Uniform(space="x0"), **kwargs)
    two = found(data, (x0, other, mask), Uniform(space="x0"), **kwargs)
    torch.testing.assert_close(one, two)


def test_gradients_reach_the_estimate(data, batch):
    x0, made, mask = batch
    made = made.clone().requires_grad_()
    loss = found(data, (x0, made, mask), Uniform(space="x0"), contacts=1.0, positions=1.0)
    (slope,) = torch.autograd.grad(loss.sum(), made)
    assert bool(slope.isfinite().all()) and not slope[1, LENGTHS[1] :].any()
    assert bool(slope[1, : LENGTHS[1]].any(1).all())


def test_a_length_is_never_left_out():
    class Net:
        class encoder:
            def __call__(self, rows):
                return rows

            def null_rows(self, name):
                return torch.tensor(-1)

        encoder, denoiser = encoder(), None

    seen = []
    conditional = Conditional(
        denoising=lambda net, x0, rows, draw: seen.append(rows),
        dropout={"label": 0.5},
        joint=0.5,
        always=["length"],
    )
    rows = {"label": torch.arange(64), "length": torch.arange(64)}
    conditional(Net(), torch.zeros(64, 1), rows, Draw(list(range(64))))
    assert seen[0]["length"].tolist() == list(range(64))
    assert 32 < int((seen[0]["label"] == -1).sum()) < 63
