"""R-precision and the matching score, on embeddings whose places are known."""

import pytest
import torch

from guidestar.evaluate.motion_text import distinct_pools, matching_score, r_precision

TEXTS = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0], [50.0]])


def test_values_by_hand():
    # Pool 1: |t − m| of the own ones 0.1, 0.4, 3.5; pool 2: 0, 0, 0. The seventh is left over.
    motions = torch.tensor([[0.1], [1.4], [5.5], [10.0], [11.0], [12.0], [0.0]])
    # Text 2 at 2.0: motions at 1.9, 0.6 and 3.5 from it, so its own is the third.
    assert r_precision(TEXTS, motions, size=3) == pytest.approx((5 / 6, 5 / 6, 1))
    assert matching_score(TEXTS, motions, size=3) == pytest.approx((0.1 + 0.4 + 3.5) / 6)
    # Text 1 has its own second; of text 0 the own is as near as another, and comes first.
    motions = torch.tensor([[0.5], [-0.5], [2.0], [10.0], [11.0], [12.0]])
    assert r_precision(TEXTS[:6], motions, size=3, top=2) == pytest.approx((5 / 6, 5 / 6))
    motions = torch.tensor([[-0.5], [0.5], [2.0], [10.0], [11.0], [12.0]])
    assert r_precision(TEXTS[:6], motions, size=3, top=1) == (1.0,)


def test_the_pools_have_32_pairs():
    x = torch.arange(70.0)[:, None]
    found = x.clone()
    found[64:] = 1000  # left over
    assert r_precision(x, found) == (1.0, 1.0, 1.0) and matching_score(x, found) == 0
    found[:32] = x[:32].flip(0)  # the nearest of a caption is another's, at the same distance
    assert r_precision(x, found)[0] == 0.5
    with pytest.raises(ValueError, match="a pool has 32 pairs, and there are 31; give more"):
        r_precision(x[:31], x[:31])


def test_no_pool_holds_a_caption_twice():
    assert distinct_pools(["a", "a", "b", "c", "b", "a"], 2) == [0, 2, 1, 4, 5, 3]
    assert distinct_pools(["a", "a", "b"], 2) == [0, 2]
    assert distinct_pools(["a", "a"], 2) == []


def test_as_many_pairs_as_one_pool_has_are_enough():
    same = torch.tensor([[0.0], [3.0]])
    assert r_precision(same, same, size=2, top=1) == (1.0,)
    assert matching_score(same, same + 0.5, size=2) == 0.5
    with pytest.raises(ValueError, match="a pool has 2 pairs, and there are 1"):
        matching_score(same[:1], same[:1], size=2)
