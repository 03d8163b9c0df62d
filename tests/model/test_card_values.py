"""A model's card, section by section, as it is written (`model/card.py`)."""

from typing import Any

import pytest

from guidestar.model.card import card_text, markdown_table, write_card

HEAD = "---\nlicense: apache-2.0\nlibrary_name: guidestar\n---\n\n# m\n\nA model."
SUMMARY = {"summary": "A model"}


def card(**about: Any) -> str:
    """Return what follows the head."""
    text = card_text("m", {**SUMMARY, **about})
    assert text.startswith(HEAD) and text.endswith("\n") and not text.endswith("\n\n")
    return text.removeprefix(HEAD)[:-1]


def test_the_head(tmp_path):
    assert card_text("m", {}) == HEAD.replace("A model.", ".") + "\n"
    assert card() == ""
    assert card_text("m", {**SUMMARY, "licence": "MIT"}).startswith("---\nlicense: mit\nlibrary")
    assert card(data="pictures") == "\n\nData: pictures"
    found = card(defaults={"guidance": "cfg(2)", "steps": 9})
    assert found == "\n\nRecommended: guidance `cfg(2)`, steps `9`."
    grids = {"2": [12.5, 1.0, 0], "1": [80.0, 0]}
    found = card(grids=grids, by_steps={"2": {"solver": "ddim", "guidance": "cond"}})
    first = "\n\nWith 2 steps: σ/α at 12.5, 1, 0, solver `ddim`, guidance `cond`."
    assert found == first + "\n\nWith 1 steps: σ/α at 80, 0."
    write_card("m", {"summary": "é"}, tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == HEAD.replace("A model", "é") + "\n"


def test_sections_are_a_blank_line_apart():
    found = card(judge_accuracy=0.5, diffusers={"needs": "a VAE"})
    judge = "An independent network on clean images that guides nothing: 50.00% of the test images."
    assert found == f"\n\n## In Diffusers\n\nA VAE.\n\n## The judge\n\n{judge}"


def test_use_in_diffusers():
    assert card(diffusers=None) == card(diffusers={}) == ""
    assert card(diffusers={"needs": "its VAE first"}) == "\n\n## In Diffusers\n\nIts VAE first."
    assert card(diffusers={"pipeline": "DDPMPipeline", "use": "pipe().images"}) == (
        "\n\n## In Diffusers\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        "pipe = DiffusionPipeline.from_pretrained(folder)  # a DDPMPipeline\npipe().images\n```\n\n"
        "This samples without guidestar, with the pipeline's own guidance."
    )


@pytest.mark.parametrize("method", ["trajectory", "matching"])
def test_a_student_of_its_steps_alone(method):
    student = {"guidance": "cfg(w)", "teacher": "t", "scale": None, "method": method}
    found = card(student=student, defaults={"steps": 2, "solver": "heun", "grid": "fitted"})
    text = "It is for 2 steps of `heun` on the grid `fitted`, and for no others."
    assert found.endswith(text)


@pytest.mark.parametrize(
    ("more", "how", "use"),
    [
        (
            {"scale": [1.0, 4.5], "method": "guided"},
            "w is an input of the network, from 1 to 4.5 (`scale=`, `--scale`)",
            "It is for any solver and number of steps.",
        ),
        (
            {"scale": None, "method": "progressive"},
            "its scales are fixed",
            "It is for 4 steps of `ddim` on the grid `uniform`, and for no others.",
        ),
        (
            {"scale": None, "method": "meanflow"},
            "its scales are fixed",
            "It takes any number of steps of `ddim`, by default 4; other solvers get the velocity "
            "at a level, as from any model.",
        ),
        (
            {"scale": None, "method": "consistency"},
            "its scales are fixed",
            "It takes any few steps of `ddim`, one too, by default 4 on the grid `uniform`; it is "
            "for no other solver.",
        ),
    ],
)
def test_a_student(more, how, use):
    defaults = {"steps": 4, "solver": "ddim", "grid": "uniform"}
    found = card(student={"guidance": "cfg(w)", "teacher": "t", **more}, defaults=defaults)
    assert found == (
        "\n\nRecommended: steps `4`, solver `ddim`, grid `uniform`.\n\n## Student\n\n"
        f"One pass gives what `cfg(w)` of t gives; {how}. {use}"
    )
    assert card(student=None) == card(student={}) == ""


def test_a_training():
    about: Any = {
        "seconds": {"model": 7, "judge": 2},
        "parameters": {"model": 1234567, "judge": 10},
        "recipe": {"model": {"train": {"steps": 9}}, "judge": {"train": {"steps": 3}}},
        "command": "guidestar train x.toml",
        "machine": "2 threads",
    }
    words = (
        "\n\n## Training\n\n`guidestar train x.toml`, on 2 threads. The whole recipe is in "
        "`guidestar.json`.\n\n"
    )
    assert card(**about) == words + (
        "| part | parameters | steps | seconds |\n| --- | --- | --- | --- |\n"
        "| model | 1,234,567 | 9 | 7 |\n| judge | 10 | 3 | 2 |"
    )
    assert card(**about, loss={"model": 0.25, "judge": 1.5}) == words + (
        "| part | parameters | steps | seconds | final loss |\n| --- | --- | --- | --- | --- |\n"
        "| model | 1,234,567 | 9 | 7 | 0.25 |\n| judge | 10 | 3 | 2 | 1.5 |"
    )


def test_an_autoencoder():
    found: Any = {"pictures": [3, 64, 64], "latents": [4, 8, 8], "psnr": 27.126, "of": 12000}
    start = (
        "\n\n## The autoencoder\n\nPictures of 3 × 64 × 64 numbers become latents of 4 × 8 × 8. "
        "12,000 held-out pictures, encoded and decoded: PSNR 27.13 dB"
    )
    assert card(autoencoder=found) == f"{start} on average."
    assert card(autoencoder={}) == card(autoencoder=None) == ""
    more = {**found, "ssim": 0.98765, "frechet": 0.012345, "half": 1.23456}
    whole = (
        f"{start}, SSIM 0.988 on average. Fréchet distance of the measuring CLIP's embeddings to "
        "those of the pictures: 0.0123; halved and enlarged again (bicubic): 1.23."
    )
    assert card(autoencoder=more) == whole
    further = " With the decoder as it ships, trained further by itself: PSNR 30.00 dB"
    assert card(autoencoder=more, decoder={"psnr": 30.0}) == f"{whole}{further}."
    decoder = {"psnr": 30.0, "ssim": 0.9, "frechet": 0.001}
    found = card(autoencoder=more, decoder=decoder)
    assert found == f"{whole}{further}, SSIM 0.900, Fréchet distance 0.001."
    assert card(decoder=decoder) == ""


def test_classifiers_of_noisy_samples():
    accuracy: Any = {"classifier_accuracy": {"0.5": 0.75, "2": 0.125}}
    start = "\n\n## The noise-aware classifier\n\nAccuracy on the test images by noise ratio. "
    everywhere = "At every level it is above 1.2 times chance, so it is on everywhere by default.\n"
    rows = "\n| σ/α | accuracy |\n| --- | --- |\n| 0.5 | 75.0% |\n| 2 | 12.5% |"
    assert card(**accuracy) == start + everywhere + rows
    off = "It is off by default above σ/α = 0.\n"
    assert card(**accuracy, classifier_rho_max=0.0) == start + off + rows
    errors = {"0.5": [0.25, 0.0625], "2": [0.5, 0.1]}
    assert card(**accuracy, classifier_ece=errors) == start + everywhere + (
        "\n| σ/α | accuracy | calibration error, as trained | with its temperatures |\n"
        "| --- | --- | --- | --- |\n| 0.5 | 75.0% | 0.250 | 0.062 |\n| 2 | 12.5% | 0.500 | 0.100 |"
    )
    assert card(classifier_accuracy={}) == card(classifier_ece=errors) == ""


def test_a_regressor_of_noisy_samples():
    assert card(regressor={}) == ""
    assert card(regressor={"0.5": [0.25, 1.125], "2": [0.5, 2.0]}) == (
        "\n\n## The noise-aware regressor\n\nMean squared error on held-out samples by noise "
        "ratio: as a share of the numbers' variance (1: it knows nothing), and relative to the "
        "variance that it predicted as trained (its temperatures bring that to 1).\n\n"
        "| σ/α | unexplained | by its own variance |\n| --- | --- | --- |\n"
        "| 0.5 | 0.250 | 1.12 |\n| 2 | 0.500 | 2.00 |"
    )


def test_clips():
    rows = {"clip": {"R@1": 0.25, "R@5": 0.5, "of": 200}, "judge": {"R@1": 1, "R@5": 1, "of": 30}}
    text = (
        "\n\n## The CLIPs\n\nHow often the right one is among the first 1 or 5, of held-out "
        "pictures and their captions.\n\n| part | R@1 | R@5 | pictures |\n"
        "| --- | --- | --- | --- |\n| clip | 25.0% | 50.0% | 200 |\n"
        "| judge | 100.0% | 100.0% | 30 |"
    )
    assert card(retrieval=rows) == text and card(retrieval={}) == ""
    noisy = {"rho_max": None, "of": 64, "image to text R@5": {"0.5": 0.75, "2": 0.25}}
    assert card(noisy_clip=noisy) == ""
    for end, words in (
        (None, "It is on at every level by default."),
        (0.0, "It is off by default above σ/α = 0."),
        (3.5, "It is off by default above σ/α = 3.5."),
    ):
        assert card(retrieval=rows, noisy_clip={**noisy, "rho_max": end}) == (
            f"{text}\n\nThe noise-aware CLIP that guides, among 64 captions of held-out pictures, "
            f"by noise ratio. {words}\n\n| σ/α | R@5 |\n| --- | --- |\n| 0.5 | 75.0% |\n"
            "| 2 | 25.0% |"
        )


FIGURES = {"title": "Scales", "text": "Seeds 0–9.", "command": "guidestar evaluate"}
ABOVE = "\n\n## Scales\n\nSeeds 0–9.\n\n    guidestar evaluate\n\n"


def test_figures_of_a_model_of_classes():
    row = {"guidance": "cfg(3)", "accuracy": 0.9514, "frechet": 3.14159, "diversity": 0.756,
           "shares": [0.06, 0.05, 0.2], "nfe": 40.0}  # fmt: skip
    other = {**row, "guidance": "cond", "nfe": 20.5, "shares": [0.1]}
    assert card(figures=[{**FIGURES, "rows": [row, other]}]) == ABOVE + (
        "| guidance | judge accuracy | Fréchet | diversity | class shares | NFE |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| `cfg(3)` | 95.1% | 3.14 | 0.76 | 5.0%–20.0% | 40 |\n"
        "| `cond` | 95.1% | 3.14 | 0.76 | 10.0%–10.0% | 20.5 |"
    )


def test_figures_of_a_model_of_texts():
    row = {"guidance": "cfg(3)", "top 1": 0.25, "top 5": 0.5, "score": 0.3456, "frechet": 0.0126,
           "nearest": 0.9876, "nfe": 40.0}  # fmt: skip
    assert card(figures=[{**FIGURES, "rows": [row]}]) == ABOVE + (
        "| guidance | right caption first | among the first 5 | CLIP score | Fréchet | "
        "nearest real | NFE |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        "| `cfg(3)` | 25.0% | 50.0% | 0.346 | 0.013 | 0.988 | 40 |"
    )


def test_values_of_other_kinds_are_refused_by_name():
    with pytest.raises(ValueError, match="the card of m cannot be written from the values in its"):
        card_text("m", {"autoencoder": {"pictures": 5}})


def test_a_table():
    assert markdown_table(("a", 1), [(None, 2.5), ("x",)]) == (
        "| a | 1 |\n| --- | --- |\n| None | 2.5 |\n| x |"
    )
