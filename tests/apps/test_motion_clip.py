"""A CLIP of motions learns which motion a caption is of."""

import pytest
import torch

from guidestar.apps.measure_motion import real_motions
from guidestar.apps.motion_clip import (
    first_captions,
    make_motion_clip,
    score_texts,
    train_motion_clip,
)
from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.evaluate.motion_text import distinct_pools
from guidestar.train.recipe.parts import Training
from helpers.motions import walker


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for k in range(36):
        name = f"pace-{k // 6}_turn-{k % 6}"
        for take in (0, 1):
            text = walker(16, speed=0.3 + 0.3 * (k // 6), turn=k % 6 - 2.5, phase=0.2 * take)
            (folder / f"{name}_{take}.bvh").write_text(text)
    settings = MotionSettings(frames=16, names="{pace}_{turn}_{}", caption="{pace} and {turn}")
    return motion_folder(folder, settings)


def test_a_trained_clip_finds_captions(data, tmp_path):
    captions, numbers = first_captions(data), real_motions(data)
    assert len(captions) == 72 and captions[0] == "pace 0 and turn 0"
    training = Training(steps=60, batch=36, rate=3e-3, warmup=5, decay=0.9)
    clip = train_motion_clip(data, tmp_path / "clip.pt", training)
    found = score_texts(clip, data, numbers, captions)
    assert found.of == 64 and found.top[0] > 0.4 and found.top[0] <= found.top[1] <= found.top[2]
    wrong = score_texts(clip, data, numbers[1:] + numbers[:1], captions)  # the next one's motion
    mixed = score_texts(clip, data, numbers[24:] + numbers[:24], captions)
    assert mixed.top[2] < 0.3 and mixed.matching > found.matching and wrong.top[0] < found.top[0]
    # By hand: embeddings of unit length, whose distance gives the score.
    rows = distinct_pools(captions)
    x = torch.stack([data.scale.apply(numbers[k]) for k in rows])
    apart = (clip.embed_image(x) - clip.embed_captions([captions[k] for k in rows])).norm(dim=-1)
    assert found.matching == pytest.approx(float(apart.mean()), rel=1e-4)
    with pytest.raises(ValueError, match="at least 32 different captions; give more motions"):
        score_texts(clip, data, numbers[:20], captions[:20])


def test_its_towers_fit(data):
    clip = make_motion_clip(["a", "b"], data.shape[1], embed=8)
    assert clip.embed_image(torch.zeros(2, 16, data.shape[1])).shape == (2, 8)
    assert clip.embed_captions(["a", "b", "c"]).shape == (3, 8) and not clip.noise_aware
