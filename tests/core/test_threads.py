"""Runs that share a network at the same time, in threads or tasks, give what each gives alone."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from torch import nn

import guidestar
from guidestar.core import hooks
from guidestar.core.denoiser import checkpointed
from guidestar.core.hooks import replaced
from helpers.pipelines import drawn, stable_diffusion


@pytest.fixture(scope="module")
def model():
    return guidestar.load("fashion-mnist")


EXPRESSIONS = (
    "cfg(3)",
    "cond + pag(3)",
    "cond + slg(2) + seg(2)",
    "cond + sag(0.75)",
    "uncond + classifier(2, through='uncond')",
)


def test_threads_that_share_a_model_do_not_disturb_each_other(model):
    """Every run, beside any other, is bit for bit what it is alone."""

    def run(expression):
        return model.sample("bag", guidance=expression, seeds=[1], steps=3).x

    alone = {e: run(e) for e in EXPRESSIONS}
    barrier = Barrier(4)

    def beside(expression):
        barrier.wait(60)
        return run(expression)

    wanted = [*EXPRESSIONS, *EXPRESSIONS[::-1], "cond + pag(3)", "cfg(3)"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(beside, wanted))
    assert all(torch.equal(x, alone[e]) for e, x in zip(wanted, found, strict=True))
    net = model.denoiser
    assert not any("_compiled_call_impl" in vars(m) for m in net.modules())


def test_a_module_is_changed_for_its_own_thread_alone():
    linear = nn.Linear(2, 2)
    x, inside, outside = torch.ones(1, 2), Barrier(2), Barrier(2)
    plain = linear(x)

    def changed(by):
        with replaced(linear, lambda forward: lambda x: forward(x) + by):
            inside.wait(10)
            out = linear(x)
            with replaced(linear, lambda forward: lambda x: 2 * forward(x)):
                twice = linear(x)
            outside.wait(10)
        return out, twice

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(changed, [1.0, 10.0]))
    for (out, twice), by in zip(found, [1.0, 10.0], strict=True):
        assert torch.equal(out, plain + by) and torch.equal(twice, 2 * (plain + by))
    assert "forward" not in vars(linear) and torch.equal(linear(x), plain)


def test_a_module_that_is_changed_elsewhere_is_as_it_was_here():
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain, signature = linear(x), inspect.signature(linear.forward)
    with replaced(linear, lambda forward: lambda x: forward(x) + 1), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(linear, x).result(), plain) and torch.equal(
            linear(x), plain + 1
        )
        assert inspect.signature(linear.forward) == signature


def test_tasks_do_not_disturb_each_other():
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = linear(x)

    async def changed(by):
        with replaced(linear, lambda forward: lambda x: forward(x) + by):
            await asyncio.sleep(0.01)
            return linear(x)

    async def unchanged():
        await asyncio.sleep(0.005)
        return linear(x)

    async def all_of_them():
        return await asyncio.gather(changed(1.0), unchanged(), changed(10.0))

    first, other, last = asyncio.run(all_of_them())
    assert (
        torch.equal(first, plain + 1)
        and torch.equal(other, plain)
        and torch.equal(last, plain + 10)
    )


def test_a_change_that_ends_in_another_thread_has_ended():
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = linear(x)
    change = replaced(linear, lambda forward: lambda x: forward(x) + 1)
    change.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(change.__exit__, None, None, None).result()
    with replaced(linear, lambda forward: lambda x: forward(x) + 10):
        assert torch.equal(linear(x), plain + 10)
    assert torch.equal(linear(x), plain) and "forward" not in vars(linear)
    assert not hooks._CHANGES.get()  # nothing is kept of what has ended


def test_checkpointing_in_two_threads_leaves_nothing_behind():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = Barrier(2), Barrier(2)

    def one(_):
        with checkpointed(net):
            first.wait(10)
            net(torch.ones(1, 2)).sum().backward()
        second.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert not any("forward" in vars(m) for m in net.modules())


def test_two_guided_pipelines_that_share_a_network():
    """And the pipeline's own guidance beside them."""
    one = stable_diffusion()
    # Each has a tokenizer of its own: transformers' are not safe between threads.
    tokenizers = [{"tokenizer": deepcopy(one.tokenizer)} for _ in range(3)]
    pipes = [type(one)(**one.components | own) for own in tokenizers]
    for pipe in pipes:
        pipe.scheduler = type(one.scheduler).from_config(one.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
    guidestar.guide(pipes[0], "cfg(5) + pag(3)")
    guidestar.guide(pipes[1], "cfg(2) + slg(2)")
    alone = [drawn(pipe) for pipe in pipes]
    barrier = Barrier(3)

    def beside(pipe):
        barrier.wait(60)
        return drawn(pipe)

    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(beside, pipes))
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
    assert all(
        "_compiled_call_impl" not in vars(m) and "forward" not in vars(m)
        for m in one.unet.modules()
    )


def test_captions_are_tokenized_by_one_thread_at_a_time():
    """A tokenizer of transformers keeps its padding and truncation in itself."""
    clip = guidestar.load("emoji").classifiers["clip"]
    captions = [["red heart", "a very long caption about nothing at all " * 20], ["cat"] * 3]
    wanted = [clip.tokens(c) for c in captions]

    def tokenized(k):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(torch.equal(clip.tokens(captions[k]), wanted[k]) for _ in range(300))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(tokenized, [0, 1, 0, 1]))
