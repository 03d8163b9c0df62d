"""Metrics against closed forms and brute force, written out here in plain torch."""

import inspect
import math

import pytest
import torch

from guidestar import evaluate
from guidestar.core.levels import VE, VP, Flow
from guidestar.core.rng import Draw
from guidestar.evaluate import (
    METRICS,
    Accuracy,
    Diversity,
    DiversityRatio,
    Frechet,
    JudgeOutput,
    LeastShare,
    Metric,
    calibration,
    class_shares,
    gaussian_distance,
    run_judge,
    sweep,
    within_class_distances,
)
from guidestar.evaluate.classifier_levels import accuracy_by_level, trusted_rho

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def judged(n=60, d=4, classes=3, seed=0):
    return JudgeOutput(
        normal(n, d, seed=seed), normal(n, classes, seed=seed + 1), torch.arange(n) % classes
    )


def features_of(mean, cov, n=200, seed=0):
    """Samples whose mean and unbiased covariance are exactly ``mean`` and ``cov``."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ torch.linalg.cholesky(cov).T + mean


def shown(features):
    return JudgeOutput(
        features,
        torch.zeros(len(features), 2, dtype=F64),
        torch.zeros(len(features), dtype=torch.int64),
    )


def rotated(values, angle):
    c, s = math.cos(angle), math.sin(angle)
    q = torch.tensor([[c, -s], [s, c]], dtype=F64)
    return q @ torch.diag(torch.tensor(values, dtype=F64)) @ q.T


# For 2×2 matrices Tr((AB)^½) = sqrt(Tr(AB) + 2 sqrt(det A det B)): no root of a matrix needed.
def closed_form(m1, c1, m2, c2):
    trace = math.sqrt(
        float((c1 @ c2).trace()) + 2 * math.sqrt(float(torch.det(c1) * torch.det(c2)))
    )
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * trace


GAUSSIANS = {
    "equal": ([0.5, -1.0], rotated([2.0, 0.3], 0.4), [0.5, -1.0], rotated([2.0, 0.3], 0.4)),
    "means differ": ([0.0, 0.0], rotated([1.0, 4.0], 0.0), [3.0, 4.0], rotated([1.0, 4.0], 0.0)),
    "commuting": ([1.0, 2.0], rotated([1.0, 9.0], 0.0), [0.0, 2.0], rotated([4.0, 0.25], 0.0)),
    "not commuting": ([1.0, 2.0], rotated([5.0, 0.1], 0.3), [-1.0, 0.5], rotated([3.0, 0.7], 1.2)),
    "far from zero": (
        [1e4, -1e4],
        rotated([5.0, 0.1], 0.3),
        [1e4 + 1, -1e4],
        rotated([3.0, 0.7], 1.2),
    ),
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_frechet_of_gaussians_is_the_closed_form(name):
    m1, c1, m2, c2 = GAUSSIANS[name]
    m1, m2 = torch.tensor(m1, dtype=F64), torch.tensor(m2, dtype=F64)
    metric = Frechet(shown(features_of(m2, c2, n=300, seed=1)))
    metric.update(shown(features_of(m1, c1)))
    assert metric.compute() == pytest.approx(closed_form(m1, c1, m2, c2), abs=1e-7)


def test_frechet_of_diagonal_gaussians_by_hand():
    m1, m2 = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 3.0])
    c1, c2 = torch.diag(torch.tensor([4.0, 1.0, 9.0])), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    # |Δμ|² = 1 + 4; (2 − 1)² + (1 − 1)² + (3 − 0)² = 10
    assert gaussian_distance(m1, c1, m2, c2) == pytest.approx(15.0, abs=1e-12)


def test_frechet_of_non_commuting_covariances_in_ten_dimensions():
    a, b = normal(10, 10), normal(10, 10, seed=1)
    c1, c2 = a @ a.T, b @ b.T
    # Tr((C1 C2)^½) = Σ sqrt(eig(C1 C2)), whose eigenvalues are real and not negative
    root = torch.linalg.eigvals(c1 @ c2).real.sqrt().sum()
    zero = torch.zeros(10, dtype=F64)
    assert gaussian_distance(zero, c1, zero, c2) == pytest.approx(
        float(c1.trace() + c2.trace() - 2 * root), rel=1e-9
    )


def test_frechet_of_fewer_samples_than_features_with_themselves_is_zero():
    samples = shown(normal(5, 40))
    metric = Frechet(samples)
    metric.update(samples)
    assert metric.compute() == pytest.approx(0, abs=1e-10)


def test_frechet_is_symmetric_and_scales_with_the_square():
    a, b = judged(seed=1), judged(seed=5)
    there, back, tripled = Frechet(a), Frechet(b), Frechet(a._replace(features=3 * a.features))
    there.update(b), back.update(a), tripled.update(b._replace(features=3 * b.features))
    assert there.compute() == pytest.approx(back.compute(), rel=1e-10)
    assert tripled.compute() == pytest.approx(9 * there.compute(), rel=1e-10)


def test_within_class_distances_by_brute_force():
    x, labels = normal(31, 3), torch.arange(31) % 4
    for c, found in within_class_distances(x, labels).items():
        rows = [i for i in range(31) if labels[i] == c]
        pairs = [math.dist(x[i].tolist(), x[j].tolist()) for i in rows for j in rows if i < j]
        assert found == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_within_class_distances_beyond_one_chunk():
    n = 1201  # evenly spaced points on a line: mean |i − j| over pairs is (n + 1)/3
    found = within_class_distances(
        torch.arange(n, dtype=torch.float32)[:, None], torch.zeros(n, dtype=torch.int64)
    )
    assert found == {0: pytest.approx((n + 1) / 3, rel=1e-12)}


def test_distances_of_near_neighbours_far_from_zero_keep_their_digits():
    x = torch.tensor([[1e6, 0.0], [1e6, 1e-3]], dtype=F64)
    assert within_class_distances(x, torch.zeros(2, dtype=torch.int64))[0] == pytest.approx(
        1e-3, rel=1e-9
    )


def test_diversity_weighs_classes_equally_and_leaves_single_samples_out():
    x = torch.tensor([[0.0], [1.0], [0.0], [3.0], [6.0], [9.0]])
    metric = Diversity()
    metric.update(JudgeOutput(x, torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 1, 2])))
    assert metric.compute() == pytest.approx(
        (1 + 4) / 2
    )  # class 0: 1; class 1: (3 + 6 + 3)/3; class 2 has one sample


def test_diversity_ratio_of_shrunken_samples_is_the_shrinkage():
    real = judged(90)
    metric = DiversityRatio(real)
    metric.update(real._replace(features=0.25 * real.features + 7))
    assert metric.compute() == pytest.approx(0.25, rel=1e-12)


def test_diversity_ratio_compares_the_classes_that_were_drawn():
    real = JudgeOutput(
        torch.tensor([[0.0], [2.0], [0.0], [100.0]]), torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    )
    metric = DiversityRatio(real)
    metric.update(
        JudgeOutput(torch.tensor([[5.0], [6.0]]), torch.zeros(2, 2), torch.tensor([0, 0]))
    )
    assert metric.compute() == pytest.approx(0.5)


def test_accuracy_counts_the_wanted_class():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 8.0, 7.0]])
    metric = Accuracy()
    metric.update(JudgeOutput(torch.zeros(4, 1), logits, torch.tensor([0, 1, 0, 1])))
    assert metric.compute() == 0.5


def test_class_shares_count_what_is_seen_and_a_missing_class_is_zero():
    logits = torch.eye(4)[[0, 0, 1, 3]]
    metric = LeastShare()
    metric.update(JudgeOutput(torch.zeros(4, 1), logits, torch.tensor([2, 2, 2, 2])))
    assert metric.shares().tolist() == [0.5, 0.25, 0.0, 0.25]
    assert metric.compute() == 0.0
    assert class_shares(torch.tensor([1, 1]), 3).tolist() == [0.0, 1.0, 0.0]


# --- laws that every exported metric meets ---


def exported():
    return [
        m
        for m in vars(evaluate).values()
        if inspect.isclass(m) and issubclass(m, Metric) and m is not Metric
    ]


def build(kind, reference):
    return kind(reference) if "reference" in inspect.signature(kind).parameters else kind()


@pytest.mark.parametrize("kind", exported())
def test_batched_updates_equal_one_update(kind):
    reference, samples = judged(80, seed=7), judged(60)
    whole, parts = build(kind, reference), build(kind, reference)
    whole.update(samples)
    for start, end in [(0, 1), (1, 20), (20, 60)]:
        parts.update(JudgeOutput(*(t[start:end] for t in samples)))
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", exported())
def test_order_of_samples_does_not_matter(kind):
    reference, samples = judged(80, seed=7), judged(60)
    perm = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one, other = build(kind, reference), build(kind, reference)
    one.update(samples), other.update(JudgeOutput(*(t[perm] for t in samples)))
    assert one.compute() == pytest.approx(other.compute(), rel=1e-10)


@pytest.mark.parametrize("kind", exported())
def test_no_samples_are_refused_in_one_line(kind):
    with pytest.raises(ValueError, match=r"^[^\n]*two samples|^[^\n]*one sample"):
        build(kind, judged()).compute()


def test_every_metric_is_reported_by_sweeps():
    made = {name: make(judged()) for name, make in METRICS.items()}
    assert {name: type(metric) for name, metric in made.items()} == {
        "accuracy": Accuracy,
        "frechet": Frechet,
        "diversity": DiversityRatio,
        "least_share": LeastShare,
    }
    assert type(made["diversity"].samples) is Diversity  # a part of the ratio
    assert {*map(type, made.values()), Diversity} == set(exported())


@pytest.mark.parametrize("kind", exported())
def test_every_metric_says_what_it_is(kind):
    assert kind.__doc__ and len(kind.__doc__) > 40


# --- judges and sweeps ---


class PlainJudge:
    """Features are the flattened pixels, logits the sums of pixels left and right."""

    def __call__(self, images):
        return torch.stack([images[..., 0].flatten(1).sum(1), images[..., 1].flatten(1).sum(1)], 1)

    def features(self, images):
        return images.flatten(1)


def pictures(n=8, seed=0):
    return normal(n, 1, 2, 2, seed=seed).float()


def test_look_gives_the_judges_view_in_chunks():
    images, wanted = pictures(), torch.arange(8) % 2
    seen = run_judge(PlainJudge(), images, wanted, batch=3)
    assert torch.equal(seen.features, images.reshape(8, 4))
    assert torch.allclose(
        seen.logits, torch.stack([images[:, 0, :, 0].sum(1), images[:, 0, :, 1].sum(1)], 1)
    )
    assert torch.equal(seen.wanted, wanted)


def test_look_without_wanted_groups_by_what_is_seen():
    images = torch.tensor([[[[9.0, 0.0], [0.0, 0.0]]], [[[0.0, 9.0], [0.0, 0.0]]]])
    assert run_judge(PlainJudge(), images).wanted.tolist() == [0, 1]


def test_look_refuses_a_judge_in_training_and_labels_that_do_not_fit():
    judge = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="eval"):
        run_judge(judge, pictures())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one wanted class"):
        run_judge(PlainJudge(), pictures(8), torch.zeros(7, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs images"):
        run_judge(PlainJudge(), pictures(8)[:0])


def test_look_shows_images_in_the_judges_own_dtype():
    class Judge(torch.nn.Linear):
        def features(self, images):
            assert images.dtype == torch.float64
            return images.flatten(1)

    assert run_judge(Judge(2, 2, dtype=F64).eval(), torch.zeros(3, 2)).features.dtype == F64  # type: ignore[arg-type]


def test_sweep_measures_each_expression_on_the_same_seeds():
    real, wanted, asked = (
        run_judge(PlainJudge(), pictures(20, seed=3), torch.arange(20) % 2),
        torch.arange(8) % 2,
        [],
    )
    right = torch.zeros(8, 1, 2, 2)
    right[torch.arange(8), 0, 0, wanted] = 1.0
    right[torch.arange(8), 0, 1, wanted] = torch.arange(8) / 8

    def draw(expression, seeds):
        asked.append((expression, list(seeds)))
        return right if expression == "good" else -right

    rows = list(sweep(draw, ["good", "bad"], range(8), PlainJudge(), real, wanted=wanted))
    assert asked == [("good", list(range(8))), ("bad", list(range(8)))]
    assert [r.expression for r in rows] == ["good", "bad"]
    assert [r.scores["accuracy"] for r in rows] == [1.0, 0.0]
    assert all(set(r.scores) == set(METRICS) and 0 <= r.seconds < 600 for r in rows)
    # a pair of samples i, j of one class differs in one pixel by |i − j|/8: means of |i − j| over
    # {0, 2, 4, 6} are 10/3
    pairs = sum(
        (real.features[i] - real.features[j]).norm()
        for c in (0, 1)
        for i in range(c, 20, 2)
        for j in range(c, 20, 2)
    ) / (2 * 90)
    assert rows[0].scores["diversity"] == pytest.approx(10 / 3 / 8 / float(pairs), rel=1e-5)
    assert (
        rows[1].scores["diversity"] == rows[0].scores["diversity"]
    )  # nothing of one row leaks into the next


def test_sweep_yields_as_it_goes():
    real, drawn = run_judge(PlainJudge(), pictures(20, seed=3)), []

    def draw(expression, seeds):
        drawn.append(expression)
        return pictures(8)

    rows = sweep(draw, [1, 2], range(8), PlainJudge(), real, metrics={"frechet": Frechet})
    assert next(rows).expression == "1" and drawn == [1]


# --- noise-aware classifiers ---


def two_points(x_t, level):
    """The exact classifier of the classes at −1 and +1."""
    return torch.cat([-x_t, x_t], 1)


@pytest.mark.parametrize("schedule", [VP.linear(), VE(), Flow()], ids=lambda s: type(s).__name__)
def test_accuracy_by_level_is_that_of_two_points_in_noise(schedule):
    y = torch.arange(4000) % 2
    x0 = (2.0 * y - 1)[:, None]
    found = accuracy_by_level(two_points, (x0, y), schedule, [0.05, 1.0, 20.0], batch=1024)
    # right where x0·x_t > 0, that is with probability Φ(1/ρ)
    for rho, share in found.items():
        wanted = 0.5 * (1 + math.erf(1 / rho / math.sqrt(2)))
        assert share == pytest.approx(
            wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 4000) + 1e-12
        )


def test_accuracy_by_level_tells_the_level_and_does_not_depend_on_batches():
    told = []

    def classifier(x_t, level):
        told.append((level.alpha, level.sigma))
        return two_points(x_t, level)

    y = torch.arange(30) % 2
    data = ((2.0 * y - 1)[:, None], y)
    assert accuracy_by_level(classifier, data, Flow(), [1.0, 3.0], batch=7) == accuracy_by_level(
        two_points, data, Flow(), [1.0, 3.0], batch=30
    )
    assert set(told) == {(0.5, 0.5), (0.25, 0.75)}


def test_accuracy_by_level_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="eval"):
        accuracy_by_level(torch.nn.Linear(1, 2), (torch.zeros(2, 1), torch.zeros(2)), Flow(), [1.0])
    with pytest.raises(ValueError, match="one class for each"):
        accuracy_by_level(two_points, (torch.zeros(3, 1), torch.zeros(2)), Flow(), [1.0])


@pytest.mark.parametrize(
    ("accuracies", "wanted"),
    [
        (
            {0.1: 0.9, 1.0: 0.5, 10.0: 0.12, 100.0: 0.1},
            10.0,
        ),  # 1.2 times chance itself still counts
        ({100.0: 0.1, 10.0: 0.3, 0.1: 0.9}, 10.0),  # in any order
        ({0.1: 0.9, 1.0: 0.1, 10.0: 0.5}, 0.1),  # a later rise counts for nothing
        ({0.1: 0.1, 1.0: 0.9}, 0.0),
        ({0.1: 0.9, 1.0: 0.5}, None),
    ],
)
def test_trusted_rho(accuracies, wanted):
    assert trusted_rho(accuracies, 0.1) == wanted


def test_calibration_error_by_hand():
    # Two classes, logits (ln p, ln(1 − p)): confidence is p where p >= ½. Five bins of width .2,
    # each with its upper end.
    sure = [0.59, 0.55, 0.7, 0.79, 0.95, 0.99]
    right = [1, 0, 1, 0, 1, 1]
    p = torch.tensor(sure, dtype=F64)
    logits, target = (
        torch.stack([p.log(), (1 - p).log()], 1),
        torch.tensor([0 if r else 1 for r in right]),
    )
    # (.4, .6]: .59 and .55, of which 1 is right; (.6, .8]: .7 and .79, 1 right; (.8, 1]: .95 and
    # .99, both right
    wanted = (abs(1 - (0.59 + 0.55)) + abs(1 - (0.7 + 0.79)) + abs(2 - (0.95 + 0.99))) / 6
    found = calibration.expected_calibration_error(logits, target, bins=5)
    assert found == pytest.approx(wanted, abs=1e-12)
    # one bin: the mean confidence against the share that is right, signs cancelling
    assert calibration.expected_calibration_error(logits, target, bins=1) == pytest.approx(
        abs(4 - sum(sure)) / 6, abs=1e-12
    )
    # fifteen by default: (8/15, 9/15] holds .59 and .55, (10/15, 11/15] .7, (11/15, 12/15] .79,
    # (14/15, 1] .95 and .99
    wanted = (abs(1 - 1.14) + abs(1 - 0.7) + 0.79 + abs(2 - 1.94)) / 6
    assert calibration.expected_calibration_error(logits, target) == pytest.approx(
        wanted, abs=1e-12
    )


def test_the_upper_end_of_a_bin_belongs_to_it():
    # Confidences .4 (wrong) and exactly .5 (right) are both in (.25, .5]
    logits = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0]], dtype=F64).log()
    assert calibration.expected_calibration_error(
        logits, torch.tensor([1, 0]), bins=4
    ) == pytest.approx(abs(1 - 0.9) / 2, abs=1e-12)


def test_figures_of_a_regressor_by_hand():
    # Told mean 1 and log-variance ln 4 of the numbers (0, 10) and (2, 30), whatever is shown.
    def regressor(x, level):
        return torch.tensor([[1.0, 15.0, math.log(4.0), math.log(50.0)]], dtype=F64).expand(
            len(x), -1
        )

    y = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    found = calibration.regression_by_level(regressor, (torch.zeros(2, 3), y), VP.linear(), [1.0])[
        1.0
    ]
    # squared errors (1, 25), (1, 225); variances of the numbers themselves 1 and 100
    assert found.unexplained == pytest.approx((1 / 1 + 125 / 100) / 2, rel=1e-12)
    assert found.surprise == pytest.approx((1 / 4 + 25 / 50 + 1 / 4 + 225 / 50) / 4, rel=1e-6)


def test_best_temperature_is_where_the_share_that_is_right_is_told():
    # Logits (2, 0) for all, right in 7 of 10: softmax of (2/T, 0) is .7 at 2/T = ln(.7/.3).
    logits, target = (
        torch.tensor([[2.0, 0.0]], dtype=F64).expand(10, 2),
        torch.tensor([0] * 7 + [1] * 3),
    )
    assert calibration.best_temperature(logits, target) == pytest.approx(
        2 / math.log(7 / 3), rel=1e-4
    )
    assert calibration.best_temperature(
        logits, torch.zeros(10, dtype=torch.int64), bound=3.0
    ) == pytest.approx(1 / 3, rel=1e-3)
    assert calibration.best_temperature(logits, torch.ones(10, dtype=torch.int64)) == pytest.approx(
        20.0, rel=1e-3
    )


def test_classifiers_are_shown_noise_of_their_own_seeds():
    x, seen = torch.arange(6.0).reshape(3, 2), []

    def classifier(x_t, level):
        seen.append((x_t, level))
        return torch.zeros(len(x_t), 2)

    calibration.by_level(
        classifier, (x, torch.tensor([0, 0, 1])), VP.linear(), [0.5, 2.0], seed=3, batch=2
    )
    calibration.by_level(
        classifier, (x, torch.tensor([0, 0, 1])), VP.linear(), [0.5], seed=4, batch=3
    )
    assert [len(x_t) for x_t, _ in seen] == [2, 1, 2, 1, 3]
    noise = [
        (torch.cat([a, b]) - level.alpha * x) / level.sigma
        for (a, level), (b, _) in ((seen[0], seen[1]), (seen[2], seen[3]))
    ]
    assert torch.allclose(*noise, atol=1e-5)  # every ratio sees the same
    wanted = Draw([3 * 1_000_003 + i for i in range(3)]).normal_like("noise", x)
    assert torch.allclose(noise[0], wanted, atol=1e-5)
    other = (seen[4][0] - seen[4][1].alpha * x) / seen[4][1].sigma
    assert not torch.isclose(other, noise[0]).any()
    assert [round(float(level.rho), 6) for _, level in seen] == [0.5, 0.5, 2.0, 2.0, 0.5]
