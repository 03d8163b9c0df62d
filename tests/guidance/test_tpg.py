"""Token perturbation guidance against its formula in plain torch: the toy and real networks."""

import pytest
import torch

from guidestar import Flow, Guided, Prediction, tpg, uniform
from guidestar.core.perturbation import layers_of
from guidestar.core.rng import Draw
from guidestar.guidance.methods.tpg import ShuffledTokens
from helpers.families import counting, family
from helpers.scenes import PLACES, SEEDS, scenes
from helpers.toys import COND, NEGATIVE, UNCOND, Spy, col, net, toy


def shuffled(scene, c, index, block="flat", seeds=SEEDS):
    """The toy with the numbers of each sample in another order: its condition moves by half the
    mean square of the change.
    """
    h = (scene.x / (scene.a**2 + scene.s**2).sqrt()).flatten(1)
    orders = Draw(seeds).at(index).normal(f"tpg.{block}", (h.shape[1],)).argsort(1)
    moved = torch.stack([own[order] for own, order in zip(h, orders, strict=True)])
    return toy(scene.x, scene.step.t, c + (moved - h).square().mean(1) / 2)


@pytest.mark.parametrize("place", PLACES)
def test_tpg_everywhere(place):
    for scene in scenes(place):
        p = shuffled(scene, COND, scene.step.index)
        assert (p - scene.c).flatten(1).abs().amax(1).min() > 1e-3
        scene.check("tpg(3)", scene.c + 3 * (scene.c - p))
        scales = col(torch.tensor([1.0, 0, -2]), scene.x)
        scene.check("tpg([1, 0, -2])", scene.c + scales * (scene.c - p))
        scene.check("cfg(4) + tpg(3)", scene.n + 4 * (scene.c - scene.n) + 3 * (scene.c - p))
        other = shuffled(scene, COND, scene.step.index, "map")
        scene.check("tpg(2, layers='map')", scene.c + 2 * (scene.c - other))
        u = shuffled(scene, UNCOND, scene.step.index)
        scene.check("uncond + tpg(3, of='uncond')", scene.u + 3 * (scene.u - u))
        n = shuffled(scene, NEGATIVE, scene.step.index)
        scene.check("tpg(3, of='neg')", scene.c + 3 * (scene.n - n))


def test_each_block_step_and_sample_has_an_order_of_its_own():
    first, second = scenes("flow")[:2]
    assert first.step.index != second.step.index
    orders = [
        Draw(SEEDS).at(index).normal(f"tpg.{block}", (8,)).argsort(1).tolist()
        for index in (first.step.index, second.step.index)
        for block in ("flat", "map")
    ]
    flat = [tuple(order) for of_samples in orders for order in of_samples]
    assert len(set(flat)) == len(flat) == 12


@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_sample_is_shuffled_alike_in_any_batch(max_rows):
    scene = scenes("vp")[0]
    together = Guided("tpg([3, 1, 2])", {"main": net(Spy())}, seeds=SEEDS, max_rows=max_rows)
    whole = together(scene.x, scene.step)[0].x0
    for k, scale in enumerate((3, 1, 2)):
        alone = Guided(f"tpg({scale})", {"main": net(Spy())}, seeds=[SEEDS[k]])
        found = alone(scene.x[k : k + 1], scene.step)[0].x0
        torch.testing.assert_close(whole[k : k + 1], found, rtol=1e-12, atol=1e-12)


def test_equal_shuffles_are_one_pass():
    scene, spy = scenes("vp")[0], Spy()
    scene.run("cfg(2) + tpg(1) + tpg([1, 2, 3])", spy=spy)
    assert [len(call) for call in spy.calls] == [9]
    assert ShuffledTokens(layers=("a",)) == ShuffledTokens(layers=("a",)) != ShuffledTokens()
    assert str(tpg(3, layers=("a", "b"))) == "tpg(3, layers=['a', 'b'])"


def test_without_seeds_it_is_refused():
    scene = scenes("vp")[0]
    with pytest.raises(ValueError, match="seeds"):
        Guided("tpg(3)", {"main": net(Spy())})(scene.x, scene.step)


@pytest.mark.parametrize("name", ["unet", "text", "dit", "pixart", "sd3"])
def test_the_tokens_of_each_block_are_shuffled_before_it_works(name):
    """By hooks of torch in the place of ours, on a network of each family."""
    f = family(name)
    x, step, cond = f.x(), uniform(Flow(), 10).step(4), f.given()
    streams = Draw(range(3)).at(step.index)

    def permuting(block):
        def permute(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            flat = hidden.flatten(2).mT if hidden.ndim == 4 else hidden
            order = streams.normal(f"tpg.{block}", flat.shape[1:2]).argsort(1)
            moved = torch.stack([own[places] for own, places in zip(flat, order, strict=True)])
            moved = moved.mT.reshape(hidden.shape) if hidden.ndim == 4 else moved
            if args:
                return (moved, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": moved}

        return permute

    def estimate():
        out = f.denoiser(x, step.t, cond)
        return out.x0 if isinstance(out, Prediction) else out

    with torch.no_grad():
        clean = estimate()
        handles = [
            f.net.get_submodule(block).register_forward_pre_hook(permuting(block), with_kwargs=True)
            for block in layers_of(f.denoiser).find("block")
        ]
        perturbed = estimate()
        for handle in handles:
            handle.remove()
    given = {"cond": cond} if len(cond) else {}
    with counting(f.net) as rows:
        out = Guided("tpg(3)", f.denoiser, seeds=range(3), **given)(x, step)[0].x0
    assert rows == [6] and (clean - perturbed).abs().max() > 1e-4
    torch.testing.assert_close(out, clean + 3 * (clean - perturbed), atol=2e-5, rtol=2e-5)
