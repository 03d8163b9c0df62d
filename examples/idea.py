"""The whole idea in plain torch, beside `gs.Guided`: the same numbers.

    guided = post( base + Σ weight(level) · direction )

Data are a mixture of Gaussians, so denoiser and classifier are exact and nothing is trained.
The expression is ``cfg(3, interval=(0.2, 5)) + classifier(1) | threshold(0.995)``.
"""

import torch

import guidestar as gs
from guidestar.data.mixtures import blobs

mixture = blobs()  # three classes in the plane: D(x_t | y), D(x_t), log p(y | x_t) in closed form
grid = gs.log_snr(gs.VP.linear(), 20)  # noise levels: x_t = alpha·x0 + sigma·eps
labels = torch.arange(64) % 3


def guided_x0(x_t, level):
    """Return the guided clean estimate at one noise level."""
    cond = mixture.denoiser(x_t, level, labels)  # one pass of the network with the condition
    null = mixture.denoiser(x_t, level)  # and one without
    x0 = cond  # base
    if 0.2 < level.rho <= 5:  # weight × direction: a contrast of two passes
        x0 = x0 + (3 - 1) * (cond - null)
    with torch.enable_grad():  # weight × direction: a gradient
        x = x_t.detach().requires_grad_()
        log_p = mixture.log_prob(x, level, labels)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
    x0 = x0 + 1 * (level.sigma**2 / level.alpha) * gradient
    limit = x0.abs().quantile(0.995, dim=1, keepdim=True).clamp_min(1)  # post: dynamic threshold
    return x0.clamp(-limit, limit) / limit


def sample(x_t):
    """Walk down the grid with DDIM: keep the noise of the estimate, lower its level."""
    for t, s in zip(grid.levels, grid.levels[1:], strict=False):
        x0 = guided_x0(x_t, t)
        eps = (x_t - t.alpha * x0) / t.sigma
        x_t = s.alpha * x0 + s.sigma * eps
    return x_t


start = gs.Draw(range(64)).normal("start", (2,)).double() * grid.levels[0].sigma
by_hand = sample(start)

expression = "cfg(3, interval=(0.2, 5)) + classifier(1) | threshold(0.995)"
guided = gs.Guided(
    expression,
    mixture,
    cond=mixture.condition(labels),
    null=mixture.null(),
    classifiers={"classifier": mixture},
    target=labels,
)
*_, last = gs.trajectory(guided, start, grid=grid, solver=gs.DDIM(), draw=gs.Draw(range(64)))
by_guidestar = last.x
print(f"largest difference: {(by_hand - by_guidestar).abs().max():.1e}")
print(guided.plan(grid))
