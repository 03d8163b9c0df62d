"""Which rows of a call are changed, and that none is computed twice or for nothing."""

from typing import Any

import pytest
import torch

from guidestar.core.perturbation import Attention, Rows
from guidestar.networks.perturbable.rows import by_rows, changed_tokens

QUERY = torch.arange(12.0).view(6, 1, 2, 1)
FIRST: Any = lambda attention: "first"
SECOND: Any = lambda attention: "second"
PLAIN = Attention.compute


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ([], [((0, 6), PLAIN)]),
        ([(FIRST, None)], [((0, 6), FIRST)]),
        ([(FIRST, Rows(0, 6, 6))], [((0, 6), FIRST)]),
        ([(FIRST, Rows(0, 2, 6))], [((0, 2), FIRST), ((2, 6), PLAIN)]),
        ([(FIRST, Rows(4, 6, 6))], [((0, 4), PLAIN), ((4, 6), FIRST)]),
        ([(FIRST, Rows(1, 2, 6))], [((0, 1), PLAIN), ((1, 2), FIRST), ((2, 6), PLAIN)]),
        (
            [(SECOND, Rows(3, 5, 6)), (FIRST, Rows(1, 3, 6))],
            [((0, 1), PLAIN), ((1, 3), FIRST), ((3, 5), SECOND), ((5, 6), PLAIN)],
        ),
        (
            [(FIRST, Rows(0, 1, 6)), (SECOND, Rows(3, 6, 6))],
            [((0, 1), FIRST), ((1, 3), PLAIN), ((3, 6), SECOND)],
        ),
    ],
)
def test_every_row_is_computed_once(changes, asked):
    found = []

    def answer(rows, attend):
        found.append((rows.indices(6)[:2], attend))
        return QUERY[rows] + 100 * len(found)

    made = by_rows(changes, QUERY, answer)
    assert found == asked
    parts = [QUERY[a:b] + 100 * (k + 1) for k, ((a, b), _) in enumerate(asked)]
    assert torch.equal(made, torch.cat(parts))


@pytest.mark.parametrize("rows", [Rows(0, 2, 5), Rows(0, 7, 7)])
def test_a_call_of_other_rows_is_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        by_rows([(FIRST, rows)], QUERY, lambda rows, attend: QUERY[rows])
    with pytest.raises(ValueError, match="rows"):
        changed_tokens(QUERY[:, 0], lambda x: x, rows)


@pytest.mark.parametrize("rows", [None, Rows(0, 1, 3), Rows(1, 3, 3)])
def test_tokens_are_changed_in_their_rows_whatever_their_shape(rows):
    """Tokens of ``[B, n, d]``, or of a picture ``[B, d, h, w]``, row by row of it."""
    change = lambda x: x.cumsum(1)  # along the tokens
    here = slice(0, 3) if rows is None else slice(rows.start, rows.stop)
    flat = torch.arange(24.0).view(3, 4, 2)
    wanted = flat.clone()
    wanted[here] = flat[here].cumsum(1)
    assert torch.equal(changed_tokens(flat, change, rows), wanted)
    grid = torch.arange(36.0).view(3, 2, 2, 3)
    wanted = grid.clone()
    wanted[here] = grid[here].flatten(2).cumsum(2).view(-1, 2, 2, 3)
    assert torch.equal(changed_tokens(grid, change, rows), wanted)
