"""Classifiers and regressors of images, sequences and vectors; their calibration by noise level."""

import math

import pytest
import torch
from torch.distributions import Normal

import guidestar as gs
from guidestar.core.levels import VP, Flow, Level
from guidestar.core.rng import Draw
from guidestar.diffusers.read.safetensors_io import read_module
from guidestar.diffusers.write import write_module
from guidestar.evaluate.calibration import (
    best_temperature,
    by_level,
    expected_calibration_error,
    fit_temperatures,
    regression_by_level,
)
from guidestar.networks.classifier import Classifier
from guidestar.networks.sequence import SequenceTransformer
from guidestar.networks.sequence_classifier import SequenceClassifier

F64 = torch.float64
KINDS = {
    "images": (lambda **m: Classifier(channels=1, widths=(8, 8), **m), (1, 8, 8)),
    "sequences": (lambda **m: SequenceClassifier(channels=3, widths=(8, 8), **m), (10, 3)),
    "vectors": (lambda **m: SequenceClassifier(channels=3, widths=(8, 8), groups=1, **m), (3,)),
}
LEVEL = Level(
    torch.tensor([0.8, 0.5], dtype=F64),
    torch.tensor([0.6, 0.9], dtype=F64),
    torch.tensor([100.0, 500.0], dtype=F64),
)


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    make, shape = KINDS[request.param]
    return make, torch.randn(2, *shape)


def test_log_prob_is_the_log_softmax(kind):
    make, x = kind
    net = make(classes=("a", "b", "c")).eval()
    logits = net(x, LEVEL)
    found = net.log_prob(x, LEVEL, torch.tensor([2, 0]))
    torch.testing.assert_close(
        found, torch.stack([logits[0].log_softmax(0)[2], logits[1].log_softmax(0)[0]])
    )
    torch.testing.assert_close(
        net(x[1:], LEVEL.take(torch.tensor([1]))), logits[1:]
    )  # a batch is its samples one by one
    assert (net(x, Level(*(v.flip(0) for v in LEVEL))) != logits).any()  # it hears of the level


def test_regressors_tell_independent_normals(kind):
    make, x = kind
    net, y = make(classes=(), outputs=2).eval(), torch.tensor([[0.3, -1.0], [2.0, 0.0]])
    mean, log_var = net(x, LEVEL).chunk(2, 1)
    torch.testing.assert_close(
        net.log_prob(x, LEVEL, y), Normal(mean, (log_var / 2).exp()).log_prob(y).sum(1)
    )


def test_regressors_work_in_the_units_of_their_numbers(kind):
    """With mean c, deviation d and a temperature T: m d + c, and l + 2 ln d + ln T."""
    make, x = kind
    net = make(classes=(), outputs=2, centre=[100.0, -5.0], spread=[20.0, 0.1]).eval()
    plain = make(classes=(), outputs=2).eval()
    plain.load_state_dict(net.state_dict())
    mean, log_var = plain(x, LEVEL).chunk(2, 1)
    d, c = torch.tensor([20.0, 0.1]), torch.tensor([100.0, -5.0])
    torch.testing.assert_close(net(x, LEVEL), torch.cat([mean * d + c, log_var + 2 * d.log()], 1))
    net.calibrate([(1.0, 3.0)])
    torch.testing.assert_close(
        net(x, LEVEL), torch.cat([mean * d + c, log_var + 2 * d.log() + math.log(3)], 1)
    )
    y = torch.tensor([[90.0, -5.1], [130.0, -4.9]])
    torch.testing.assert_close(
        net.log_prob(x, LEVEL, y),
        Normal(mean * d + c, d * (log_var / 2).exp() * math.sqrt(3)).log_prob(y).sum(1),
    )


def test_the_input_is_brought_to_unit_size(kind):
    make, x = kind
    net = make(classes=("a", "b")).eval()
    twice = Level(2 * LEVEL.alpha, 2 * LEVEL.sigma, LEVEL.t)
    torch.testing.assert_close(net(2 * x, twice), net(x, LEVEL))


def test_temperatures_divide_the_logits_between_levels_and_beyond(kind):
    make, x = kind
    net = make(classes=("a", "b", "c")).eval()
    plain = net(x, LEVEL)
    net.calibrate([(0.5, 1.0), (2.0, 3.0)])
    rho = LEVEL.sigma / LEVEL.alpha  # 0.75 and 1.8
    share = (rho.log() - math.log(0.5)) / (math.log(2) - math.log(0.5))
    torch.testing.assert_close(net(x, LEVEL), plain / (1 + 2 * share)[:, None].float())
    for rho, wanted in ((0.01, 1.0), (50.0, 3.0)):
        level = Level(1.0, rho, 10.0)
        torch.testing.assert_close(net(x, level) * wanted, make_plain(net, x, level))


def make_plain(net, x, level):
    kept, net.temperatures = net.temperatures, ()
    out = net(x, level)
    net.temperatures = kept
    return out


@pytest.mark.parametrize("table", [[(1.0, 0.0)], [(0.0, 1.0)], [(2.0, 1.0), (1.0, 1.0)]])
def test_temperatures_out_of_range_are_refused(table):
    with pytest.raises(ValueError, match="rho rising"):
        Classifier(("a", "b"), widths=(8,)).calibrate(table)


def test_classifiers_are_written_and_read_with_their_temperatures(kind, tmp_path):
    make, x = kind
    net = make(classes=("a", "b")).eval()
    net.calibrate([(0.5, 1.5), (2.0, 3.0)])
    write_module(net, tmp_path, torch.float32)
    again = read_module(tmp_path, known={type(net).__name__: type(net)})
    assert torch.equal(again(x, LEVEL), net(x, LEVEL)) and again.temperatures == net.temperatures


# --- calibration ---


def mixture():
    """Two normals in one dimension, and their exact posterior's logits at a level, times ``k``."""
    means = torch.tensor([-1.0, 1.0], dtype=F64)
    draw = Draw(range(4000))
    y = (draw.uniform("y") < 0.5).long()
    x = means[y][:, None] + 0.7 * draw.gaussian("x")[:, None]

    def logits(k):
        def classifier(x_t, level):
            var = level.alpha**2 * 0.49 + level.sigma**2
            return -k * (x_t - level.alpha * means) ** 2 / (2 * var)

        return classifier

    return (x, y), logits


@pytest.mark.parametrize("k", [1.0, 3.0, 0.5])
def test_the_temperature_of_logits_times_k_is_k(k):
    data, logits = mixture()
    for schedule in (VP.linear(), Flow()):
        exact = fit_temperatures(logits(1.0), data, schedule, [0.2, 1.0, 3.0])
        found = fit_temperatures(logits(k), data, schedule, [0.2, 1.0, 3.0])
        for rho, t in found.items():
            assert t == pytest.approx(
                k * exact[rho], rel=1e-3
            )  # the same samples, so exactly k times
            assert exact[rho] == pytest.approx(
                1.0, abs=0.15
            )  # and 1 but for the sampling error of 4,000


def test_calibrating_does_not_change_what_is_told_but_how_surely():
    data, logits = mixture()
    sure = by_level(logits(4.0), data, VP.linear(), [1.0])[1.0]
    t = fit_temperatures(logits(4.0), data, VP.linear(), [1.0])[1.0]
    cooled = by_level(lambda x, level: logits(4.0)(x, level) / t, data, VP.linear(), [1.0])[1.0]
    assert (
        cooled.accuracy == sure.accuracy
        and cooled.nll < 0.8 * sure.nll
        and cooled.ece < 0.3 * sure.ece
    )


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    p = torch.tensor([0.9, 0.9, 0.8, 0.6], dtype=F64)
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    right = torch.tensor([0, 1, 0, 1])  # of the bin of 0.9: one of two; 0.8: right; 0.6: wrong
    wanted = (abs(1 - 1.8) + abs(1 - 0.8) + abs(0 - 0.6)) / 4
    assert expected_calibration_error(logits, right, bins=10) == pytest.approx(wanted, abs=1e-12)


def test_a_regressors_figures_are_those_of_its_errors():
    """x0 ~ N(0, 0.6²) and y = x0 + 0.4 n: of y's variance 0.52, the exact regressor leaves 0.36 −
    gain·α·0.36 + 0.16.
    """
    draw, schedule = Draw(range(20_000)), Flow()
    x = 0.6 * draw.gaussian("x")[:, None]
    y = x + 0.4 * draw.gaussian("y")[:, None]

    def regressor(x_t, level):
        gain = level.alpha * 0.36 / (level.alpha**2 * 0.36 + level.sigma**2)
        told = 0.5 * (0.36 - gain * level.alpha * 0.36 + 0.16)  # too sure by half
        return torch.cat([gain * x_t, torch.full_like(x_t, math.log(told))], 1)

    for rho, row in regression_by_level(regressor, (x, y), schedule, [0.2, 1.0, 5.0]).items():
        a, s = 1 / (1 + rho), rho / (1 + rho)
        left = 0.36 - (a * 0.36) ** 2 / (a * a * 0.36 + s * s) + 0.16
        assert row.unexplained == pytest.approx(
            left / 0.52, rel=0.04
        ) and row.surprise == pytest.approx(2.0, rel=0.04)


def test_temperatures_stay_within_bounds():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    assert best_temperature(logits, torch.tensor([0, 0]), 20.0) == pytest.approx(
        1 / 20, rel=1e-3
    )  # always right: as sure as may be
    assert best_temperature(logits, torch.tensor([0, 1]), 20.0) == pytest.approx(
        20, rel=1e-3
    )  # no better than chance


def test_the_shipped_classifier_is_as_it_was():
    """A model from before temperatures by level: its logits are those of its head, divided by one
    number.
    """
    net = gs.load("fashion-mnist").classifiers["classifier"]
    x, level = torch.randn(2, 1, 28, 28), Level(0.8, 0.6, 300.0)
    assert net.temperatures == ()
    with torch.no_grad():
        torch.testing.assert_close(
            net(x, level), net.head(net.features(x, 300.0)) / net.config["temperature"]
        )


# --- the transformer of sequences ---


@pytest.mark.parametrize(
    ("shape", "more"),
    [((12, 3), {"length": 12}), ((12, 3), {"length": 12, "patch": 3}), ((5,), {})],
)
def test_sequences_and_vectors_go_through_the_transformer(shape, more, tmp_path):
    torch.manual_seed(0)
    net = SequenceTransformer(channels=shape[-1], width=16, depth=2, heads=2, **more)
    x, t, told = torch.randn(3, *shape), torch.tensor([1.0, 300.0, 999.0]), torch.randn(3, 16)
    assert net(x, t, class_labels=told).eq(0).all()  # adaLN-zero: at first nothing is predicted
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    out = net(x, t, class_labels=told)
    assert (
        out.shape == x.shape
        and (out != net(x, t, class_labels=told.flip(0))).any()
        and (out != net(x, t.flip(0), class_labels=told)).any()
    )
    torch.testing.assert_close(
        net(x[1:2], t[1:2], class_labels=told[1:2]), out[1:2], atol=1e-5, rtol=1e-4
    )
    write_module(net, tmp_path, torch.float32)
    assert torch.equal(
        read_module(tmp_path, known={"SequenceTransformer": SequenceTransformer})(
            x, t, class_labels=told
        ),
        out,
    )


def test_every_frame_sees_every_other_and_knows_its_place():
    torch.manual_seed(0)
    net = SequenceTransformer(channels=2, length=6, width=16, depth=1, heads=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    x, t = torch.randn(1, 6, 2), torch.tensor([50.0])
    changed = x.clone()
    changed[0, 0] += 1
    assert (net(x, t) != net(changed, t)).any(-1).all()
    assert not torch.allclose(net(x.flip(1), t), net(x, t).flip(1), atol=1e-3)


def test_words_are_attended_to_but_for_the_masked():
    torch.manual_seed(0)
    net = SequenceTransformer(
        channels=2, length=4, width=16, depth=1, heads=2, cross_attention_dim=8
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    x, t, words = torch.randn(2, 4, 2), torch.tensor([50.0, 50.0]), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = words.clone()
    other[:, 3:] += 1
    a, b = (net(x, t, encoder_hidden_states=w, encoder_attention_mask=mask) for w in (words, other))
    torch.testing.assert_close(a[0], b[0])
    assert (a[1] != b[1]).any()


@pytest.mark.parametrize("more", [{"length": 10, "patch": 3}, {"heads": 3}])
def test_sizes_that_do_not_divide_are_refused(more):
    with pytest.raises(ValueError, match="must be a multiple"):
        SequenceTransformer(channels=2, width=16, **more)


# --- guidance by a regressor ---


class Exact:
    """p(y | x_t) where x0 ~ N(0.2, 0.6²) in each of two dimensions and y = x0 + 0.4 n."""

    def log_prob(self, x, level, target):
        gain = level.alpha * 0.36 / (level.alpha**2 * 0.36 + level.sigma**2)
        variance = 0.36 - gain * level.alpha * 0.36 + 0.16
        return (
            Normal(0.2 + gain * (x - level.alpha * 0.2), variance**0.5)
            .log_prob(target.to(x))
            .sum(1)
        )


def denoised(x, level, cond):
    gain = level.alpha * 0.36 / (level.alpha**2 * 0.36 + level.sigma**2)
    return 0.2 + gain * (x - level.alpha * 0.2)


@pytest.mark.parametrize("schedule", [VP.linear(), Flow()], ids=["VP", "flow"])
def test_the_exact_regressor_guides_to_the_exact_conditional(schedule):
    y = torch.tensor([[0.5, -1.0], [2.0, 0.1], [0.0, 0.0]])
    grid = gs.GRIDS["log_snr"](schedule, 8)
    guided = gs.Guided(
        gs.parse("uncond + classifier(1)"), denoised, classifiers={"classifier": Exact()}, target=y
    )
    level, x = grid[3], torch.randn(3, 2, dtype=F64)
    found, _ = guided(x, grid.step(3), {})
    # Given y, x0 is normal with precision 1/0.36 + 1/0.16; x_t adds α²/σ².
    precision = 1 / 0.36 + 1 / 0.16 + level.alpha**2 / level.sigma**2
    wanted = (0.2 / 0.36 + y.double() / 0.16 + level.alpha * x / level.sigma**2) / precision
    torch.testing.assert_close(found.x0, wanted, atol=1e-6, rtol=1e-6)  # y is told in float32


def test_a_model_tells_its_regressor_what_was_asked_for():
    torch.manual_seed(0)
    from guidestar.networks.condition_encoders import VectorEncoder

    seen = []

    class Spy(Exact):
        def log_prob(self, x, level, target):
            seen.append(target.tolist())
            return super().log_prob(x, level, target)

    encoder = VectorEncoder(2, 4)
    model = gs.Model(
        name="m",
        denoiser=denoised,
        schedule=VP.linear(),
        shape=(2,),
        encoder=encoder,
        classifiers={"classifier": Spy()},
        decode=lambda x: x,
    )
    model.sample(
        ["0.5,-1", "2,0"], guidance="uncond + classifier(1)", seeds=[0, 1], steps=1, solver="ddim"
    )
    assert seen[0] == [[0.5, -1.0], [2.0, 0.0]]
    seen.clear()
    model.sample(
        ["0.5,-1", "2,0"],
        guidance="uncond + classifier(1, target='1,1')",
        seeds=[0, 1],
        steps=1,
        solver="ddim",
    )
    assert seen[0] in ([[1.0, 1.0]], [[1.0, 1.0]] * 2)
