"""CLIP's towers, tokenizer, files and training, against transformers' own model and plain torch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPModel

from guidestar import Draw, Flow
from guidestar.diffusers.read.clip import find_text, read_clip, read_tower, write_clip, write_tower
from guidestar.diffusers.read.text_encoder import TextEncoder
from guidestar.evaluate.retrieval import merged, ranks, retrieval
from guidestar.networks.caption_tokens import make_tokenizer, tokens, warn_of_cuts
from guidestar.networks.clip import CLIP, Vision, make_clip, make_vision
from guidestar.train.objectives.contrastive import Contrastive
from guidestar.train.objectives.level_distributions import LogitNormal

CAPTIONS = ["red apple, flat style", "green pear", "", "日本 🍎", "xylophone"]
SIZES = {"size": 16, "width": 32, "layers": 2, "heads": 2, "patch": 4, "embed": 24}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(
        ["red apple, flat style", "a red apple", "green pear", "noto style"],
        vocabulary=560,
        length=16,
    )


@pytest.fixture
def clip(tokenizer) -> CLIP:
    torch.manual_seed(0)
    return make_clip(tokenizer, text_width=32, text_layers=2, text_heads=2, **SIZES).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_tokenizer_takes_any_text(tokenizer):
    assert len(tokenizer) <= 560
    rows = tokens(tokenizer, CAPTIONS)
    assert rows.shape == (5, 2, 16)
    assert rows[2, 1].sum() == 2, "the empty caption is its two marks"
    assert (
        tokenizer.unk_token_id == tokenizer.eos_token_id
        and (rows[3, 0] == tokenizer.eos_token_id).sum() == (rows[3, 1] == 0).sum() + 1
    ), "nothing is unknown"
    assert [t.removesuffix("</w>") for t in tokenizer.tokenize("Red  APPLE")] == ["red", "apple"]


def test_a_caption_that_is_cut_is_told(clip):
    with pytest.warns(
        UserWarning, match=r"longer than the 16 tokens .* cut after 'red apple red apple.*'"
    ):
        clip.embed_text(["red apple " * 20])


class Letters:
    """A tokenizer of one token a character and two marks, which counts its calls."""

    model_max_length = 8

    def __init__(self):
        self.calls: list[str] = []

    def __call__(self, text, **settings):
        assert settings == {"truncation": False, "verbose": False}
        self.calls.append(text)
        return SimpleNamespace(input_ids=[0, *map(ord, text), 1])

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


def test_only_prompts_that_could_be_cut_are_turned_into_tokens(recwarn):
    """Of 8 tokens two are marks: six letters fit, and seven do not."""
    letters = Letters()
    warn_of_cuts(letters, ["abcdef"])
    assert not letters.calls and not recwarn.list
    for given, most, kept in ((["abcdefg"] * 2, None, "abcdef"), (["abcdefg"], 6, "abcd")):
        letters.calls.clear()
        with pytest.warns(UserWarning, match=f"the {most or 8} tokens .* cut after '{kept}'$"):
            warn_of_cuts(letters, given, most)
        assert letters.calls == ["abcdefg"]
    recwarn.clear()
    warn_of_cuts(letters, ["abcdefg"], 9)
    long = "".join(chr(97 + k % 26) for k in range(99))
    with pytest.warns(UserWarning, match=f"cut after {long[48:88]!r}$"):
        warn_of_cuts(letters, [long], 90)


def test_captions_are_embedded_256_at_a_time(clip, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(clip, "tokens", lambda part: torch.zeros(len(part), 1))
    monkeypatch.setattr(clip, "embed_tokens", lambda rows: sizes.append(len(rows)) or rows)
    assert len(clip.embed_captions(["a"] * 513)) == 513 and sizes == [256, 256, 1]


def test_a_fresh_clip_has_the_sizes_that_are_given(tokenizer):
    made = make_clip(
        tokenizer, size=16, width=12, layers=3, heads=4, patch=8,
        text_width=20, text_layers=2, text_heads=5, embed=7,
    )  # fmt: skip
    text, image = made.text.config, made.vision.tower.config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (20, 2, 5)
    assert (text.intermediate_size, text.projection_dim, text.vocab_size) == (80, 7, len(tokenizer))
    assert text.max_position_embeddings == tokenizer.model_max_length and text.use_attention_mask
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == marks
    assert (image.hidden_size, image.num_hidden_layers, image.num_attention_heads) == (12, 3, 4)
    assert (image.intermediate_size, image.projection_dim, image.num_channels) == (48, 7, 3)
    assert (image.image_size, image.patch_size, made.noise_aware) == (16, 8, False)


def test_the_tokenizer_needs_room_for_every_byte():
    with pytest.raises(ValueError, match="at least 514"):
        make_tokenizer(["a"], vocabulary=500, length=8)


def test_it_is_transformers_clip(clip, x, tmp_path):
    write_clip(clip, tmp_path / "clip", torch.float32)
    theirs = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    rows = clip.tokens(CAPTIONS)
    with torch.no_grad():
        expected = theirs(
            input_ids=rows[:, 0], attention_mask=rows[:, 1], pixel_values=x
        ).logits_per_image
        texts = clip.embed_text(CAPTIONS)
        found = torch.stack([clip.log_prob(x, None, texts[k : k + 1]) for k in range(5)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_is_read_as_it_was_written(clip, x, tmp_path):
    write_clip(clip, tmp_path, torch.float32)
    again = read_clip(tmp_path)
    assert torch.equal(again.embed_text(CAPTIONS), clip.embed_text(CAPTIONS))
    with torch.no_grad():
        assert torch.equal(again.embed_image(x), clip.embed_image(x))
    assert float(again.log_scale) == pytest.approx(math.log(1 / 0.07), rel=1e-6)


def test_pixels_come_in_the_units_of_the_tower(clip, x):
    """As OpenAI's: scaled to [0, 1], less a mean, over a deviation, and enlarged to the tower's
    size.
    """
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs = Vision(clip.vision.tower, mean=mean, std=std)
    pixels = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(x), clip.vision.tower(pixel_values=pixels).image_embeds, rtol=1e-5, atol=1e-5
        )
        assert clip.vision._pixels(x) is x  # pixels in [−1, 1] are what the tower expects
        small = torch.nn.functional.interpolate(x, (8, 8))
        large = torch.nn.functional.interpolate(small, (16, 16), mode="bicubic", antialias=True)
        torch.testing.assert_close(
            clip.vision(small),
            clip.vision.tower(pixel_values=large).image_embeds,
            rtol=1e-5,
            atol=1e-5,
        )


def test_latents_are_refused(clip):
    with pytest.raises(ValueError, match="3 channels"):
        clip.embed_image(torch.zeros(1, 4, 16, 16))


def test_the_noise_aware_tower_adds_its_embedding_to_every_token(x, tmp_path):
    torch.manual_seed(0)
    vision, level = (
        make_vision(noise_aware=True, **SIZES).eval(),
        Flow()(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)),
    )
    body = vision.tower.vision_model
    with torch.no_grad():
        unit = x / torch.tensor(
            [math.hypot(0.8, 0.2), math.hypot(0.5, 0.5), math.hypot(0.1, 0.9)]
        ).view(3, 1, 1, 1)
        frequency = torch.exp(-math.log(10000) * torch.arange(16) / 16)
        angles = 1000 * torch.tensor([0.2, 0.5, 0.9])[:, None] * frequency
        added = vision.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        states = body.encoder(
            inputs_embeds=body.pre_layrnorm(body.embeddings(unit) + added[:, None])
        ).last_hidden_state
        expected = vision.tower.visual_projection(body.post_layernorm(states[:, 0]))
        torch.testing.assert_close(vision(x, level), expected, rtol=1e-4, atol=1e-4)
        write_tower(vision, tmp_path, torch.float32)
        assert torch.equal(read_tower(tmp_path)(x, level), vision(x, level))
    with pytest.raises(ValueError, match="needs the noise level"):
        vision(x)


def test_contrastive_loss(clip, x):
    """Two pictures of one caption share it evenly."""
    rows = clip.tokens(["red apple", "green pear", "red apple"])
    with torch.no_grad():
        loss = Contrastive()(clip, x, rows, Draw([0, 1, 2]))
        f, g = clip.embed_image(x), clip.embed_tokens(rows)
    z = f @ g.T / 0.07
    p = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    to_text, to_image = z - z.logsumexp(1, keepdim=True), z.T - z.T.logsumexp(1, keepdim=True)
    torch.testing.assert_close(loss, -(p * (to_text + to_image)).sum(1) / 2, rtol=1e-4, atol=1e-4)


def test_contrastive_loss_of_a_noise_aware_clip_sees_x_t(clip, x):
    clip.vision = make_vision(noise_aware=True, **SIZES).eval()
    rows, draw = clip.tokens(["red apple", "green pear", "noto"]), Draw([3, 4, 5])
    schedule, levels = Flow(), LogitNormal(mean=0.0, std=1.0)
    with torch.no_grad():
        loss = Contrastive(schedule=schedule, levels=levels)(clip, x, rows, draw)
        level = levels(schedule, draw)
        x_t = level.alpha.float().view(3, 1, 1, 1) * x + level.sigma.float().view(
            3, 1, 1, 1
        ) * draw.normal_like("noise", x)
        z = clip.embed_image(x_t, level) @ clip.embed_tokens(rows).T / 0.07
    expected = -(z.log_softmax(1).diagonal() + z.log_softmax(0).diagonal()) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_ranks_count_what_fits_better_and_halve_ties():
    keys = torch.eye(3, dtype=torch.float64)
    queries = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.9], [0.5, 0.5, 0.5]], dtype=torch.float64)
    assert ranks(queries, keys, torch.tensor([0, 0, 1])).tolist() == [0.0, 2.0, 1.0]
    found = retrieval(queries, keys)
    assert found["image to text R@1"] == pytest.approx(1 / 3) and found["image to text R@5"] == 1.0
    assert found["text to image R@1"] == pytest.approx(1 / 3), (
        "the first column alone is largest at its own row"
    )


def test_captions_that_mean_the_same_are_one():
    close = [math.cos(a) for a in (0.0, 0.2, 0.4, 1.5)], [math.sin(a) for a in (0.0, 0.2, 0.4, 1.5)]
    texts = torch.tensor(
        close, dtype=torch.float64
    ).T  # neighbours at cosine 0.98, the ends of the first three at 0.92
    assert merged(texts, 0.95).tolist() == [0, 0, 0, 3]
    assert merged(texts, 0.99).tolist() == [0, 1, 2, 3]


def test_what_is_read_of_the_text_tower(clip):
    rows = clip.tokens(CAPTIONS[:3])
    with torch.no_grad():
        out = clip.text(rows[:, 0], attention_mask=rows[:, 1], output_hidden_states=True)
    last = TextEncoder(clip.text, clip.tokenizer, mask=True)(rows)
    assert torch.equal(last["encoder_hidden_states"], out.last_hidden_state) and torch.equal(
        last["encoder_attention_mask"], rows[:, 1]
    )
    before = TextEncoder(clip.text, clip.tokenizer, layer="penultimate")(rows)
    torch.testing.assert_close(
        before["encoder_hidden_states"],
        clip.text.text_model.final_layer_norm(out.hidden_states[-2]).detach(),
    )
    pooled = TextEncoder(clip.text, clip.tokenizer, output="pooled")(rows)["encoder_hidden_states"]
    ends = rows[:, 1].sum(1) - 1
    assert torch.equal(pooled, out.last_hidden_state[torch.arange(3), ends][:, None])


def test_a_text_encoder_is_found_in_a_clips_folder(clip, tmp_path):
    write_clip(clip, tmp_path, torch.float32)
    found = find_text(tmp_path)
    assert torch.equal(
        found.encode(["red apple"])["encoder_hidden_states"],
        TextEncoder(clip.text, clip.tokenizer).encode(["red apple"])["encoder_hidden_states"],
    )


def test_a_clip_without_its_tokenizer_is_refused(clip, tmp_path):
    write_clip(clip, tmp_path, torch.float32)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    for read in (find_text, read_clip):
        with pytest.raises(ValueError, match="holds no tokenizer"):
            read(tmp_path)


def test_a_clip_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # or it asks the hub, again and again
    with pytest.raises(ValueError, match="nobody/nothing"):
        find_text("nobody/nothing")


def test_a_vocabulary_has_no_more_tokens_than_it_may():
    """Each byte twice and two marks are there from the start; what is left are pairs."""
    letters = "abcdefghij"
    words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    found = make_tokenizer(words, vocabulary=530, length=9)
    # 16 are left, of which each of the ten letters that end a word takes one.
    assert len(found) == 514 + 16 - 10 and found.model_max_length == 9
