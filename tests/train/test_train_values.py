"""Training against a plain loop of torch written out here, and a recipe's numbers against their
formulas.
"""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory
from guidestar.networks.network import Network
from guidestar.train import snapshots
from guidestar.train.build.data import sources
from guidestar.train.build.schedules import denoising, process, scheduler_config
from guidestar.train.loop.memory import training_memory
from guidestar.train.loop.signals import Stop
from guidestar.train.loop.trainer import Trainer
from guidestar.train.objectives.denoising import dropped
from guidestar.train.objectives.objective import Objective, TrainSettings
from guidestar.train.recipe import schema as recipes

F64 = torch.float64


class Loss(Objective):
    def __call__(self, net, x0, target, draw):
        return (net(x0 + draw.normal_like("noise", x0)) - target[:, None]).square().mean(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 2)).double()


SIZE, BATCH, SEED = 7, 4, 5
X, Y = (
    torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(1)).double(),
    torch.linspace(-3, 3, SIZE).double(),
)


def plain(
    steps, *, parts=1, rate=0.05, warmup=3, clip=0.3, decay=0.6, weight_decay=0.2, width_gamma=None
):
    """Train in plain torch; return the weights, their average, the losses and the norms."""
    net = network().train()
    adam = torch.optim.AdamW(
        net.parameters(), lr=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay
    )
    average, power = ([p.detach().clone() for p in net.parameters()] for _ in range(2))
    losses, norms, order = [], [], []
    for p in range(steps * BATCH // SIZE + 1):
        order += torch.randperm(
            SIZE, generator=torch.Generator().manual_seed(SEED * 1_000_003 + p)
        ).tolist()
    for k in range(steps):
        fall = 0.5 + 0.5 * math.cos(math.pi * max(0.0, (k - warmup) / (steps - warmup)))
        adam.param_groups[0]["lr"] = rate * min((k + 1) / warmup, fall)
        torch.manual_seed((SEED * 1_000_003 + k) * 1024)
        total = 0.0
        for share in torch.arange(BATCH).tensor_split(parts):
            rows = [order[k * BATCH + int(i)] for i in share]
            draw = Draw([SEED * 1_000_003 + k * BATCH + int(i) for i in share], k)
            noise = draw.normal("noise", (3,)).double()
            loss = (net(X[rows] + noise) - Y[rows, None]).square().mean(1).sum() / BATCH
            loss.backward()
            total += float(loss.detach())
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        for p in net.parameters():
            p.grad *= min(1.0, clip / (norm + 1e-6))
        adam.step()
        adam.zero_grad()
        losses.append(total)
        norms.append(norm)
        n = k + 1
        d = min(decay, (1 + n) / (10 + n))
        beta = 0.0 if width_gamma is None else (1 - 1 / n) ** (width_gamma + 1)
        for a, q, p in zip(average, power, net.parameters(), strict=True):
            a.copy_(d * a + (1 - d) * p.detach())
            q.copy_(beta * q + (1 - beta) * p.detach())
    return list(net.parameters()), average, power, losses, norms


def trained(steps, *, parts=1, **changes):
    source = InMemory(
        x=X, targets={"y": Y[:, None].float()}, columns={"y": Column(kind="vector", width=1)}
    )
    settings = {
        "batch": BATCH,
        "accumulate": parts,
        "rate": 0.05,
        "warmup": 3,
        "clip": 0.3,
        "decay": 0.6,
        "weight_decay": 0.2,
        "seed": SEED,
        "precision": "float64",
    }
    trainer = Trainer(
        network(),
        Loss(),
        source,
        TrainSettings(steps=steps, **{**settings, **changes}),
        prepare=lambda t: t["y"][:, 0].double(),
    )
    trainer.module.train()
    losses, norms = [], []
    for _ in range(steps):
        losses.append(trainer.step())
        norms.append(trainer.norm)
    return trainer, losses, norms


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_training_is_the_plain_loop_of_its_formulas(parts):
    """Order, noise, dropout, accumulation, clipping, AdamW, warm-up, cosine and both averages at
    once.
    """
    gamma = 6.937203937601806  # of the relative width 0.1: (γ + 1)/((γ + 2)²(γ + 3)) = 0.01
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(0.01, rel=1e-6)
    weights, average, power, losses, norms = plain(9, parts=parts, width_gamma=gamma)
    trainer, found, found_norms = trained(9, parts=parts, power=(0.1,))
    assert max(norms) > 0.6  # clipping counts
    assert found == pytest.approx(losses, rel=1e-6) and found_norms == pytest.approx(
        norms, rel=1e-5
    )
    assert len(list(trainer._parts())) == parts  # which bounds memory, and changes nothing else
    assert list(trainer.averages) == ["ema-0.6", "power-0.1"]
    for i, p in enumerate(trainer.module.parameters()):
        name = list(dict(trainer.module.named_parameters()))[i]
        assert torch.allclose(p, weights[i], atol=1e-6)
        assert torch.allclose(trainer.averages["ema-0.6"].weights()[name], average[i], atol=1e-6)
        assert torch.allclose(trainer.averages["power-0.1"].weights()[name], power[i], atol=1e-6)
    mean = 0.0
    for n, loss in enumerate(losses, 1):
        mean += (loss - mean) * max(0.01, 1 / n)
    assert trainer.loss == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 1e9},
        {"decay": 0.1},
        {"weight_decay": 0.0},
        {"rate": 0.04},
        {"warmup": 1},
        {"seed": 6},
    ],
    ids=str,
)
def test_each_setting_changes_the_training(changes):
    """That the comparison above could fail."""
    one, two = trained(9)[0], trained(9, **changes)[0]
    pairs = zip(one.ema.weights().values(), two.ema.weights().values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-4


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float64", F64), ("float32", torch.float32), ("bfloat16", torch.float32)],
)
def test_weights_and_data_have_the_precision_that_is_stated(precision, dtype):
    """A network computes in that of its weights; bfloat16 is autocast, over float32 weights."""
    seen = []

    class Spy(Objective):
        def __call__(self, net, x0, target, draw):
            seen.append((x0.dtype, torch.is_autocast_enabled("cpu")))
            return net.net(x0).float().square().mean(1)

    part = Network(nn.Linear(3, 3).to(torch.float16))
    data = InMemory(x=X, targets={}, columns={})
    settings = TrainSettings(steps=2, batch=4, precision=precision)
    trainer = Trainer(part, Spy(), data, settings)
    trainer.step()
    assert {p.dtype for p in part.parameters()} == {dtype} and part.dtype == dtype
    assert seen == [(dtype, precision == "bfloat16")]


@pytest.mark.parametrize(
    ("asked", "due", "main"), [(a, d, m) for a in (0, 1) for d in (0, 1) for m in (0, 1)]
)
def test_processes_agree_on_the_loss_on_saving_and_on_a_stop(monkeypatch, asked, due, main):
    """Two of them: the other's loss is 5, and it asks for what this one does not."""
    second = trained(2)[1][1]
    again = trained(1)[0]
    seen: list[list[float]] = []

    def reduce(shared):
        seen.append(shared.tolist())
        return shared + torch.tensor([5.0, 1.0 - asked, 1.0 - due]).to(shared)

    kind = type(again.accelerator)
    monkeypatch.setattr(again.accelerator, "reduce", reduce)
    monkeypatch.setattr(kind, "is_main_process", bool(main))
    stop = Stop()
    stop.requested, again.due = bool(asked), bool(due)
    assert again.step(stop) == pytest.approx(second + 5)
    assert seen == [[pytest.approx(second), asked, due * main]]
    assert stop.agreed and again.due is bool(due * main + 1 - due)
    monkeypatch.setattr(again.accelerator, "reduce", lambda shared: shared * 1)
    stop.requested, again.due = False, False
    again.step(stop)
    assert not stop.agreed and not again.due


def test_dropout_layers_draw_anew_each_step():
    masks = []

    class Spy(Objective):
        def __call__(self, net, x0, target, draw):
            masks.append(F.dropout(torch.ones(50), 0.5, training=True))
            return Loss()(net, x0, target, draw)

    trainer = trained(1)[0]
    trainer._lossy.objective = Spy()
    trainer.step()
    trainer.step()
    assert not torch.equal(*masks)


def test_joint_dropout_is_or_and_each_condition_draws_its_own():
    draw = Draw(list(range(400)), 3)
    rows = {"a": torch.arange(400.0), "b": torch.arange(400.0)}
    found = dropped(rows, lambda _: torch.tensor(-1.0), {"a": 0.5, "b": 0.4}, 0.5, draw)
    every = draw.uniform("drop all") < 0.5
    for name, rate in (("a", 0.5), ("b", 0.4)):
        own = draw.uniform(f"drop {name}") < rate
        assert (every & own).any()  # where an exclusive or would keep what both drop
        assert torch.equal(found[name] == -1, every | own)
        assert torch.equal(found[name][~(every | own)], rows[name][~(every | own)])
    assert not torch.equal(found["a"] == -1, found["b"] == -1)


# --- a recipe's numbers reach what they name ---

HEAD = (
    'name = "it"\n[data]\nkind = "fashion-mnist"\n{tables}\n[model]\nwidths = [8]\nhead = '
    "8\ntrain = {{ steps = 40 }}\n"
)


def recipe(tmp_path, tables):
    (tmp_path / "r.toml").write_text(HEAD.format(tables=tables))
    return recipes.read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_betas_are_those_of_the_recipe(tmp_path, kind):
    found = recipe(
        tmp_path,
        f'[schedule]\nbeta_schedule = "{kind}"\nnum_train_timesteps = 50\nbeta_start = '
        "0.001\nbeta_end = 0.3",
    )
    beta = (
        torch.linspace(0.001, 0.3, 50, dtype=F64)
        if kind == "linear"
        else torch.linspace(0.001**0.5, 0.3**0.5, 50, dtype=F64) ** 2
    )
    alpha = (1 - beta).cumprod(0).sqrt()
    schedule = process(found).schedule
    assert schedule.t_max == 49
    for t in (0, 7, 49):
        assert float(schedule(float(t)).alpha) == pytest.approx(float(alpha[t]), rel=1e-6)
    config = scheduler_config(found)
    assert {
        k: config[k] for k in ("beta_schedule", "num_train_timesteps", "beta_start", "beta_end")
    } == {
        "beta_schedule": kind,
        "num_train_timesteps": 50,
        "beta_start": 0.001,
        "beta_end": 0.3,
    }


def test_edms_numbers_are_those_of_the_recipe(tmp_path):
    found = recipe(
        tmp_path, '[schedule]\nkind = "edm"\nsigma_min = 0.01\nsigma_max = 30.0\nsigma_data = 0.8'
    )
    p = process(found)
    assert (p.schedule.t_min, p.schedule.t_max, p.sigma_data) == (0.01, 30.0, 0.8)
    level = p.schedule(2.0)
    weight = denoising(found).weighting(level)
    assert float(weight) == pytest.approx((2.0**2 + 0.64) / (2.0 * 0.8) ** 2, rel=1e-9)
    config = scheduler_config(found)
    assert (config["sigma_min"], config["sigma_max"], config["sigma_data"]) == (0.01, 30.0, 0.8)


def test_a_flows_numbers_are_those_of_the_recipe(tmp_path):
    found = recipe(tmp_path, '[schedule]\nkind = "flow"\nshift = 3.0\nnum_train_timesteps = 250')
    p = process(found)
    assert p.time_scale == 250.0 and p.schedule.shift == 3.0
    assert {k: scheduler_config(found)[k] for k in ("num_train_timesteps", "shift")} == {
        "num_train_timesteps": 250,
        "shift": 3.0,
    }


def test_parts_have_seeds_of_their_own_and_snapshots_their_steps(tmp_path):
    text = (
        HEAD.format(tables="")
        .replace('name = "it"', 'name = "it"\nseed = 10')
        .replace("head = 8", "head = 8\nsnapshots = [0.5, 0.001, 1, 0.26]")
    )
    (tmp_path / "r.toml").write_text(
        text
        + (
            "[weak]\nwidths = [8]\nhead = 8\ntrain = { steps = 1 }\n[judge]\nwidths = [8]\ntrain = "
            "{ steps = 1 }\n"
        )
    )
    found = recipes.read_recipe(tmp_path / "r.toml")
    assert [snapshots.train_settings(found, part).seed for part in ("model", "weak", "judge")] == [
        10,
        11,
        13,
    ]
    assert snapshots.snapshot_steps(found, "model") == [1, 10, 20, 40]


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 4), ("float64", 8)])
def test_memory_counts_what_training_holds(precision, size):
    module = nn.Sequential(
        nn.Linear(3, 5), nn.Linear(5, 2).requires_grad_(False)
    )  # 20 trained, 12 frozen
    found = training_memory(
        module, TrainSettings(steps=1, batch=10, power=(0.1, 0.2), precision=precision), (3, 4)
    )
    # Of each trained weight: itself, its gradient, two moments, and three averages.
    assert found == pytest.approx(
        {
            "weights and optimiser": (20 * 7 + 12) * size / 1e6,
            "a batch of data": 10 * 12 * size / 1e6,
        }
    )


# --- data to test on ---


def test_data_to_test_on_are_read_whole_and_in_the_units_of_the_training(tmp_path):
    x, other = (
        torch.randn(6, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1,
        torch.arange(8.0).reshape(4, 2),
    )
    names = {"classes": json.dumps({"label": ["a", "b"]})}
    save_file({"x": x, "label": torch.arange(6) % 2}, tmp_path / "train.safetensors", names)
    save_file(
        {"x": other, "label": torch.tensor([1, 1, 0, 1])}, tmp_path / "test.safetensors", names
    )
    tables = (
        f'path = "{tmp_path}/train.safetensors"\ntest = '
        f'"{tmp_path}/test.safetensors"\nstandardise = true\nholdout = 0.5'
    )
    text = (
        HEAD.format(tables=tables)
        .replace('"fashion-mnist"', '"tensors"')
        .replace("widths = [8]\nhead = 8", 'network = "sequence"')
    )
    (tmp_path / "r.toml").write_text(text)
    train, test = sources(recipes.read_recipe(tmp_path / "r.toml"))
    assert (train.size, test.size) == (6, 4)  # nothing is held out beside it
    mean, std = x.mean(0), x.std(0, correction=0)
    for source, raw, labels in ((train, x, [0, 1, 0, 1, 0, 1]), (test, other, [1, 1, 0, 1])):
        rows = list(range(len(raw)))
        values, targets = source.batch(rows, Draw(rows))
        assert (
            torch.allclose(values, (raw - mean) / std, atol=1e-5)
            and targets["label"].tolist() == labels
        )
