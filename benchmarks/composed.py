"""Time a step of four guidances at once against its passes one by one, in turn, in one process.

    make bench
    python benchmarks/composed.py --rounds 31

`cfg + autoguidance + pag + a negative` on the shipped fashion-mnist model, batch 16, in the middle
of
the run: 5 distinct passes (the condition, the null, the weak network, the perturbed network, the
negative) where the four terms apart would take 8. Prints the counts, and the time of the composed
step over the sum of the times of those 5 passes, each evaluated alone.
"""

from __future__ import annotations

import argparse

import torch
from against_diffusers import BATCH, in_turn

from guidestar import Draw, load
from guidestar.core.evaluation import evaluate
from guidestar.core.rounds import Group, Round

TERMS = ("cfg(3)", "autoguidance(2)", "pag(2)", "cfg(2, negative='bag')")


def composed(model, rounds):
    names, step = [model.classes[i % 10] for i in range(BATCH)], model.grid(20).step(9)
    guided = model.guided(" + ".join(TERMS), cond=names, seeds=range(BATCH))
    x = step.t.norm * Draw(range(BATCH)).normal("x", model.shape)
    group = Group(x_t=x, step=step, batch=BATCH)
    passes = list(guided.plan(step.grid, batch=BATCH).steps[9].passes)
    naive = sum(
        model.guided(term, cond=names).plan(step.grid, batch=BATCH).steps[9].nfe for term in TERMS
    )

    def alone(p):
        return evaluate(Round(group=group, passes={p: None}, nets=guided.nets))

    (whole, *apart), _ = in_turn(
        [lambda: guided(x, step), *(lambda p=p: alone(p) for p in passes)], rounds
    )
    print(
        f"{len(passes)} distinct passes a step ({', '.join(map(str, passes))}) for {naive:g} of "
        "the terms apart"
    )
    print(
        f"composed {1000 * whole:.1f} ms, the passes alone "
        f"{' + '.join(f'{1000 * t:.1f}' for t in apart)} = {1000 * sum(apart):.1f} ms, ratio "
        f"{whole / sum(apart):.3f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} "
        "rounds in turn, medians"
    )
    composed(load("fashion-mnist"), arguments.rounds)


if __name__ == "__main__":
    main()
