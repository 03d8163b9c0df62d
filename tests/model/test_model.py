"""The shipped model: loads here and with Diffusers' own classes, samples what was asked for,
reproducibly.
"""

import pytest
import torch

import guidestar as gs
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from guidestar.model.shipped import SHIPPED

FOLDER = SHIPPED / "fashion-mnist"


@pytest.fixture(scope="module")
def model():
    return gs.load("fashion-mnist")


def judged(model, samples):
    wanted = torch.tensor([model.classes.index(c) for c in samples.settings.cond])
    return float((model.judge(samples.images).argmax(1) == wanted).double().mean())


def test_samples_what_was_asked_for(model):
    names = [c for c in model.classes for _ in range(3)]
    samples = model.sample(names, guidance=gs.cfg(3) + gs.classifier(1), seeds=range(30), steps=12)
    assert samples.images.shape == (30, 1, 28, 28) and samples.images.abs().max() <= 1
    assert judged(model, samples) >= 0.85
    assert samples.nfe == 24


def test_classifier_alone_steers_the_unconditional_model(model):
    names = [c for c in model.classes for _ in range(2)]
    steered = model.sample(names, guidance="uncond + classifier(10)", seeds=range(20), steps=12)
    free = model.sample(names, guidance="uncond", seeds=range(20), steps=12)
    assert judged(model, steered) >= 0.7
    assert judged(model, free) <= 0.35


def test_folder_loads_with_diffusers_own_classes_and_gives_the_same_images(model):
    unet = UNet2DModel.from_pretrained(FOLDER, subfolder="unet", torch_dtype=torch.float32)
    trained = DDPMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    scheduler = DDIMScheduler.from_config(
        trained.config, timestep_spacing="leading", clip_sample=False
    )
    scheduler.set_timesteps(5)
    emb = torch.cat(
        [model.encoder.null(2)["class_labels"], model.encoder.encode(["bag", 3])["class_labels"]]
    )
    x = gs.Draw([0, 1]).at(-1).normal("start", model.shape) * model.grid(5, "leading")[0].sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            u, c = unet(torch.cat([x, x]), t, class_labels=emb).sample.chunk(2)
            x = scheduler.step(u + 2.5 * (c - u), t, x).prev_sample
    ours = model.sample(
        ["bag", "dress"], guidance="cfg(2.5)", seeds=[0, 1], solver="ddim", grid="leading", steps=5
    )
    torch.testing.assert_close(ours.x, x, atol=1e-4, rtol=0)


def test_seeds_alone_decide(model):
    all_at_once = model.sample("coat", seeds=[4, 9, 2], steps=4, guidance="cfg(2)").x
    for i, seed in enumerate([4, 9, 2]):
        torch.testing.assert_close(
            model.sample("coat", seeds=[seed], steps=4, guidance="cfg(2)").x[0],
            all_at_once[i],
            atol=2e-4,
            rtol=0,
        )
    assert model.sample("coat", seeds=[4, 9, 2], steps=4, guidance="cfg(2)").x.equal(all_at_once)
    torch.testing.assert_close(
        model.sample("coat", seeds=[4, 9, 2], steps=4, guidance="cfg(2)", max_rows=2).x,
        all_at_once,
        atol=2e-4,
        rtol=0,
    )


def test_negative_is_the_null_when_empty(model):
    a, b = (
        model.sample("coat", seeds=[1], steps=4, guidance="cfg(4)", negative=n).x
        for n in (None, "")
    )
    c = model.sample("coat", seeds=[1], steps=4, guidance="cfg(4)", negative="shirt").x
    d = model.sample("coat", seeds=[1], steps=4, guidance="cfg(4, negative='shirt')").x
    assert a.equal(b) and c.equal(d) and not a.equal(c)


def test_starts_from_an_image(model):
    image = model.sample("bag", seeds=[0], steps=10).x
    near = model.sample("bag", seeds=[3], start=image, start_rho=0.3, steps=20).x
    far = model.sample("bag", seeds=[3], start=image, start_rho=20.0, steps=20).x
    assert (near - image).square().mean() < 0.2 * (far - image).square().mean()


def test_save_and_load_again(model, tmp_path):
    gs.save(model, tmp_path / "copy")
    again = gs.load(tmp_path / "copy")
    for name, tensor in model.denoiser.state_dict().items():
        assert again.denoiser.state_dict()[name].equal(tensor), name
    a, b = (
        m.sample("bag", seeds=[1], steps=3, guidance="cfg(2) + classifier(1)").x
        for m in (model, again)
    )
    assert a.equal(b)


def test_weak_model_ships(model):
    assert set(model.nets) == {"weak"}
    denoiser, encoder = model.nets["weak"]
    x = gs.Draw([0]).normal("x", model.shape)
    level = model.schedule.at_rho(1.0)
    weak = denoiser(x, level, encoder.encode(["bag"]))
    assert weak.shape == x.shape and not weak.equal(
        model.denoiser(x, level, model.encoder.encode(["bag"]))
    )


def test_plan_knows_what_runs(model):
    plan = model.plan("cfg(3) + cfg(2, negative='coat') + apg(2)", cond="bag", steps=4)
    assert plan.nfe == 12
    assert model.plan("uncond", steps=7).nfe == 7
    assert model.plan("cfg(2)", steps=7, solver="heun").nfe == 26


def test_a_plan_is_of_each_scale_and_each_condition(model):
    assert model.plan("cfg([1, 2, 4])", steps=2).nfe == pytest.approx(2 * 5 / 3)
    assert model.plan("cfg([1, 2, 4])", cond=["bag"], steps=2).nfe == pytest.approx(2 * 5 / 3)
    assert model.plan("cfg([1, 2])", cond=["bag", "coat"], steps=2).nfe == 3
    for cond, said in (
        (["bag", "bag"], "cfg has 3 scales for 2 samples"),
        ([], "0 conditions were given"),
    ):
        with pytest.raises(ValueError, match=said):
            model.plan("cfg([1, 2, 4])", cond=cond)


def test_seeds_are_a_list(model):
    for seeds, said in (
        (0, r"seeds must be a list of integers, one for each sample, not 0"),
        ([], "at least one seed is needed"),
        (["a"], "seeds must be"),
    ):
        with pytest.raises(ValueError, match=said):
            model.sample("bag", seeds=seeds)


def test_weights_together_are_small():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*.safetensors")) < 40e6
    assert (FOLDER / "weak" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 1e6


def test_loads_any_diffusers_folder(tmp_path):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    net = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=8,
        **blocks,
    ).eval()
    net.save_pretrained(tmp_path / "unet")
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = gs.load(tmp_path)
    ours = model.sample(seeds=[0, 1], solver="ddim", grid="leading", steps=6)
    x = gs.Draw([0, 1]).at(-1).normal("start", (3, 8, 8)) * model.grid(6, "leading")[0].sigma
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours.x, x, atol=1e-4, rtol=1e-4)
    assert ours.images.shape == (2, 3, 8, 8) and ours.nfe == 6
    with pytest.raises(ValueError, match="unconditional"):
        model.sample("cat", seeds=[0])


def test_a_run_that_cannot_be_repeated_says_so(model):
    image = model.sample("bag", seeds=[0], steps=2).x
    near = model.sample("bag", seeds=[3], start=image, start_rho=1.0, steps=6)
    with pytest.raises(ValueError, match="started from an image"):
        model.again(vars(near.settings))
    with pytest.warns(gs.sampling.DivergenceWarning):  # two steps with so much churn
        churned = model.sample("bag", seeds=torch.arange(2), solver=gs.Heun(churn=5), steps=2)
    assert churned.settings.solver == "heun(churn=5)"
    assert torch.equal(model.again(vars(churned.settings)).x, churned.x)
    ours = gs.TimeTravel(solver=gs.DDIM(), times=2)
    travelled = model.sample("bag", seeds=[0], solver=ours, steps=2)
    with pytest.raises(ValueError, match="depended on the solver it was given in Python"):
        model.again(vars(travelled.settings))


def half(x):
    """Means of squares of two by two pixels."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


@pytest.fixture(scope="module")
def boots(model):
    return model.sample(["ankle boot", "bag"], seeds=[40, 41], steps=12, guidance="cfg(2)").x


def test_a_loss_steers_a_loaded_model(model, boots):
    """An inverse problem by an observation, and the same by a function of one's own."""
    y, run = half(boots), {"seeds": [0, 1], "steps": 12}
    observed = gs.Observation(gs.Downsample(factor=2), y)
    free = model.sample(guidance="uncond", **run)
    told = model.sample(guidance="uncond + dps(5)", losses={"loss": observed}, **run)
    wrong = [(half(s.x) - y).square().mean() for s in (free, told)]
    assert wrong[1] < 0.1 * wrong[0] and told.nfe == 12
    assert (told.x - boots).square().mean() < 0.2 * (free.x - boots).square().mean()
    named = {"mine": lambda x0: (y - half(x0)).flatten(1).norm(dim=1)}
    torch.testing.assert_close(
        model.sample(guidance="uncond + dps(5, 'mine')", losses=named, **run).x,
        told.x,
        atol=1e-4,
        rtol=0,
    )
    last = [
        state.x
        for state in model.trajectory(guidance="uncond + dps(5)", losses={"loss": observed}, **run)
    ][-1]
    assert last.equal(told.x)
    again = model.sample(
        guidance="uncond + dps(5)", losses={"loss": observed}, checkpoint=True, **run
    )
    torch.testing.assert_close(again.x, told.x, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"no loss 'loss' \(there is mine\); give losses="):
        model.sample(guidance="uncond + dps(5)", losses=named, **run)
    assert model.plan("uncond + dps(1) + mpgd(1, 'mine')", cond=None, steps=5).gradients == 10


def test_a_run_with_a_loss_or_a_reward_is_not_repeated_without_it(model):
    loss = lambda x0: x0.flatten(1).sum(1)
    for guidance, what in (
        ("uncond + mpgd(0.1)", "the loss 'loss'"),
        (gs.mpgd(0.1, loss), "what its guidance was given in Python"),
    ):
        settings = model.sample(
            guidance=guidance, losses={"loss": loss}, seeds=[0], steps=2
        ).settings
        with pytest.raises(
            ValueError, match=f"depended on {what}, which its settings do not carry"
        ):
            model.again(vars(settings))
    steered = model.steer(loss, particles=2, steps=2)
    with pytest.raises(ValueError, match="depended on the reward"):
        model.again(vars(steered.settings))
    assert (
        model.sample(guidance="uncond", losses={"loss": loss}, seeds=[0], steps=2).settings.lacking
        == ()
    )


def test_a_reward_steers_a_loaded_model(model):
    """The judge's log-probability of a class, which nothing differentiates, as a reward of
    unconditional particles.
    """
    bag, seen = model.classes.index("bag"), []

    def reward(images):
        return model.judge(images).log_softmax(1)[:, bag]

    found = model.steer(
        reward,
        particles=4,
        seeds=[3, 4],
        steps=10,
        watch=lambda done, total: seen.append((done, total)),
    )
    assert (
        found.images.shape == (2, 1, 28, 28)
        and found.population.x.shape == (2, 4, 1, 28, 28)
        and seen == [(i, 10) for i in range(1, 11)]
    )
    torch.testing.assert_close(
        reward(found.images).double(), found.population.rewards.max(1).values, atol=1e-4, rtol=1e-4
    )
    assert found.evaluations == (40, 40)
    best = model.steer(reward, particles=4, seeds=[3, 4], steps=10, every=0)
    one = model.sample(seeds=[3, 4], steps=10, solver="ddpm", guidance="uncond")
    torch.testing.assert_close(best.population.x[:, 0], one.x, atol=1e-4, rtol=0)
    assert (
        found.population.rewards.mean() > best.population.rewards.mean()
        and (best.population.rewards.max(1).values >= reward(one.images)).all()
    )
    told = model.steer(reward, "bag", particles=2, steps=3, guidance="cfg(2)")
    assert told.settings.cond == ("bag",) and told.evaluations == (12,)
    each = model.steer(
        reward, "bag", particles=2, seeds=[0, 1], steps=2, guidance="cfg([1, 3])", every=0
    )
    assert each.evaluations == (4, 8) and each.settings.guidance == "cfg([1, 3])", (
        "both particles of a sample have its scale"
    )
    with pytest.raises(ValueError, match="cfg has 2 scales for 3 samples"):
        model.steer(reward, "bag", particles=2, seeds=[0, 1, 2], steps=2, guidance="cfg([1, 3])")
    for more, said in (
        ({"solver": "ddim"}, "draws no noise"),
        ({"particles": 0}, "particles must be a whole number from 1"),
        ({"seeds": []}, "at least one seed"),
    ):
        with pytest.raises(ValueError, match=said):
            model.steer(reward, steps=2, **more)


def test_the_evaluations_of_samples_that_differ_are_averaged():
    images = torch.zeros(3, 1)
    assert gs.Samples(x=images, images=images, settings=None, evaluations=(2, 5, 11)).nfe == 6.0


def test_the_student_that_ships_takes_four_passes_at_its_own_setting():
    student = gs.load("fashion-mnist", variant="4-step")
    assert student.card["student"]["guidance"] == "cfg(2, interval=(0.1, 1))"
    assert student.defaults == {
        "guidance": "cond",
        "steps": 4,
        "solver": "ddim",
        "grid": "fitted",
    }
    found = student.sample(["coat", "bag"], seeds=[0, 1])
    teacher = gs.load("fashion-mnist").sample(
        ["coat", "bag"], guidance="cfg(2, interval=(0.1, 1))", steps=10, seeds=[0, 1]
    )
    assert found.nfe == 4
    # The same runs: far nearer to the teacher's pictures than these are to each other.
    near = (found.x - teacher.x).square().mean()
    assert near < 0.1 * (teacher.x[0] - teacher.x[1]).square().mean()
