"""guidance.toml: what is written is read, and what is wrong is refused by its key."""

import re
import tomllib

import pytest
import torch

import guidestar as gs
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from guidestar.cli import main
from guidestar.diffusers import guidance_file as recipe
from guidestar.diffusers.guidance_file import GuidanceRecipe

WHOLE = GuidanceRecipe(
    guidance='cfg(7.5, interval=(0.3, 5.4)) + AND(2, "a \\"red\\" cat") | rescale(0.7)',
    steps=12,
    solver="ddim",
    grid="karras",
    negative='no "x"\n😀\x7f \\',
)


@pytest.mark.parametrize("made", [WHOLE, GuidanceRecipe(guidance="cond")])
def test_what_is_written_is_read(made, tmp_path):
    recipe.write(made, tmp_path)
    content = tomllib.loads((tmp_path / "guidance.toml").read_text(encoding="utf-8"))
    assert content == {k: v for k, v in vars(made).items() if v is not None}
    assert (
        recipe.read_guidance(tmp_path)
        == recipe.read_guidance(tmp_path / "guidance.toml")
        == recipe.read_guidance(str(tmp_path))
        == made
    )
    assert recipe.guidance_of("cfg(3)") == "cfg(3)" and recipe.guidance_of(gs.cfg(3)) == gs.cfg(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r'the key guidance is missing; write e.g. guidance = "cfg\(3\)"$'),
        ("guidance = ", "not readable as TOML"),
        ("guidance = 3", "guidance must be text, not 3$"),
        (
            'guidance = "cfg(3)"\nguidence = "cfg(2)"',
            "unknown key 'guidence'; did you mean 'guidance'[?] it has guidance, steps, solver, "
            "grid, negative$",
        ),
        (
            'guidance = "cfg(3)"\nsteps = 2.5',
            "steps must be a whole number from 1 to 10000, not 2.5$",
        ),
        ('guidance = "cfg(3)"\nsteps = true', "steps must be a whole number"),
        ('guidance = "cfg(3)"\nsteps = 0', "steps must be a whole number"),
        ('guidance = "cfg(3)"\nsolver = "eulr"', "unknown solver 'eulr'; did you mean 'euler'"),
        ('guidance = "cfg(3)"\ngrid = "leeding"', "unknown grid 'leeding'; there are uniform"),
        ('guidance = "cfg(3)"\nnegative = 1', "negative must be text, not 1$"),
        ('guidance = "cgf(3)"', "unknown name 'cgf'; did you mean 'cfg'"),
        ('guidance = "__import__(1)"', "unknown name '__import__'"),
    ],
)
def test_what_is_wrong_is_refused(text, message, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        recipe.read_guidance(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"guidance\.toml: there is no such file$"):
        recipe.read_guidance(tmp_path)
    assert recipe.settings(tmp_path) == {}


def settings_of(folder):
    from guidestar.io.images import read_settings

    return read_settings(next(folder.glob("*.png")))


def test_the_command_line_reads_it(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    recipe.write(
        GuidanceRecipe(
            guidance="cfg(2) + apg(1.5)", steps=2, solver="ddim", grid="uniform", negative="bag"
        ),
        file,
    )
    run = ["sample", "fashion-mnist", "--cond", "coat", "--guidance-file", str(file)]
    with pytest.raises(SystemExit) as end:
        main([*run, "--out", str(tmp_path / "a")])
    assert end.value.code == 0
    found = settings_of(tmp_path / "a")
    assert {k: found[k] for k in ("guidance", "steps", "solver", "grid", "negative")} == {
        "guidance": "cfg(2) + apg(1.5)",
        "steps": 2,
        "solver": "ddim",
        "grid": "uniform",
        "negative": "bag",
    }
    with pytest.raises(SystemExit):
        main([*run, "--steps", "3", "--negative", "", "--out", str(tmp_path / "b")])
    found = settings_of(tmp_path / "b")
    assert (found["steps"], found["solver"], found["negative"]) == (3, "ddim", ""), (
        "an option overrides the file"
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*run, "--guidance", "cfg(3)"])
    assert (
        end.value.code == 2
        and "--guidance and --guidance-file each give the guidance" in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", ["sample", "plan"])
def test_the_help_says_which_options_override_the_file(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    assert (
        "A guidance.toml: guidance, steps, solver, grid, negative; the options for the last four "
        "override it, and --guidance takes its place." in said
    )


def planned(options, capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", "fashion-mnist", *options])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_a_plan_is_of_the_whole_file(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    recipe.write(
        GuidanceRecipe(
            guidance="uncond + cfg(2)", steps=2, solver="heun", grid="uniform", negative="bag"
        ),
        file,
    )
    written = [
        "--guidance",
        "uncond + cfg(2)",
        "--steps",
        "2",
        "--solver",
        "heun",
        "--levels",
        "uniform",
    ]
    plan = planned(["--guidance-file", str(file)], capsys)
    # Two steps of Heun's with a second evaluation in the first of them, of three passes each: the
    # negative is not the null.
    assert (
        plan == planned([*written, "--negative", "bag"], capsys)
        and "neg" in plan
        and "total NFE 9 a sample" in plan
    )
    assert "total NFE 6 a sample" in planned(written, capsys)
    assert planned(["--guidance-file", str(file), "--negative", ""], capsys) == planned(
        written, capsys
    )
    recipe.write(GuidanceRecipe(guidance="cfg([1, 1, 2, 4])", steps=2), file)
    assert (
        "uncond (2 of 4)" in (plan := planned(["--guidance-file", str(file)], capsys))
        and "total NFE 3 a sample" in plan
    )


def pipeline():
    size = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 2,
    }
    pipe = DDIMPipeline(UNet2DModel(sample_size=8, **size), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_is_guided_by_the_file(tmp_path):
    pipe = pipeline()
    (tmp_path / "guidance.toml").write_text('guidance = "uncond | threshold(0.5)"\n')

    def drawn(guidance):
        return gs.guide(pipe, guidance)(
            num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images

    written, plain = drawn("uncond | threshold(0.5)"), drawn(None)
    assert (drawn(tmp_path / "guidance.toml") == written).all() and (
        drawn(str(tmp_path / "guidance.toml")) == written
    ).all()
    assert not (written == plain).all()


DROPPED = {
    "steps = 12": "it decides steps by its own arguments and scheduler: call it with "
    "num_inference_steps=12$",
    "negative = 'a \"red\" cat'": "it decides negative by its own arguments and scheduler: call "
    "it with negative_prompt='a \"red\" cat'$",
    "solver = 'ddim'\ngrid = 'karras'": "it decides solver, grid by its own arguments and "
    "scheduler$",
    "grid = 'karras'\nsteps = 3\nnegative = 'x'": "it decides steps, grid, negative by .*: call "
    "it with num_inference_steps=3, negative_prompt='x'$",
}


@pytest.mark.parametrize("lines", DROPPED)
def test_what_a_pipeline_decides_itself_is_said(lines, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f'guidance = "cfg(3)"\n{lines}\n')
    for given in (file, str(file)):
        with pytest.warns(
            UserWarning,
            match=f"^{re.escape(str(file))}: of this file a pipeline takes the guidance alone; "
            f"{DROPPED[lines]}",
        ) as caught:
            assert recipe.guidance_of(given) == "cfg(3)"
        assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_a_file_of_the_guidance_alone_is_taken_whole(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('guidance = "cfg(3)"\nnegative = ""\n')
    assert (
        recipe.guidance_of(file) == recipe.guidance_of(str(file)) == "cfg(3)"
    )  # a warning would be an error


def test_a_pipeline_warns_where_it_is_guided(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('guidance = "uncond | threshold(0.5)"\nsteps = 12\n')
    with pytest.warns(UserWarning, match="it decides steps") as caught:
        gs.guide(pipeline(), file)
    assert caught[0].filename == __file__
