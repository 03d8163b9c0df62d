"""Diffusers' own pipeline tests, each pipeline guided by the scale that the test gives: a plugin of
pytest, and its runner.

    python tests/diffusers_suite.py CHECKOUT [FAMILY …] [-k EXPRESSION]

runs ``CHECKOUT/tests/pipelines/FAMILY`` twice, plain and guided, and reports what fails guided and
passes plain. CHECKOUT is a clone of Diffusers' repository at a tag near the installed version. Its
tests fetch tiny tokenizers and text encoders from the hub; stand-ins of random weights take their
places, so nothing is fetched. They need the packages ``parameterized`` and ``requests_mock``.
"""

from __future__ import annotations

import functools
import gc
import inspect
import json
import os
import re
import string
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FAMILIES = (
    *(
        "ddim",
        "ddpm",
        "dit",
        "pixart_alpha",
        "pixart_sigma",
        "stable_audio",
        "aura_flow",
        "ltx",
        "wan",
    ),
    *("stable_video_diffusion", "kandinsky2_2", "flux", "controlnet_flux", "stable_diffusion_3"),
    *(
        "controlnet_sd3",
        "stable_diffusion",
        "stable_diffusion_2",
        "stable_diffusion_xl",
        "controlnet",
    ),
    *("chroma", "allegro", "latte", "cogvideo", "mochi"),
    *("sana", "lumina2", "krea2", "hunyuan_image_21", "hunyuan_video1_5", "hunyuandit"),
    *("kandinsky3", "z_image", "qwenimage", "cosmos", "flux2", "ltx2", "hunyuan_video"),
    *("cogview4", "kandinsky5", "skyreels_v2"),
    *("lumina", "stable_cascade", "omnigen", "chronoedit", "ace_step", "helios"),
)
"""The folders of tests of every family that docs/diffusers.md names."""

_GUIDED, _REPORT = "GUIDESTAR_SUITE_GUIDED", "GUIDESTAR_SUITE_REPORT"
_IN_A_CALL = ("has a cache (enable_cache)", "which is which is not known")
"""What is in the lines that refuse, in a call, a network with a cache of Diffusers, and guidance of
which no expression is known (LTX-2's, with another scale for the sound).
"""
_SPACES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "velocity"}


# --- the plugin ---


def pytest_configure(config: pytest.Config) -> None:
    """Put the stand-ins in place."""
    config.stash[_FOLDER] = folder = tempfile.TemporaryDirectory()
    _redirect(_stand_ins(Path(folder.name)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guide the pipelines that the test modules name."""
    _let_run()
    if not os.environ.get(_GUIDED):
        return
    from diffusers import DiffusionPipeline

    for module in {item.module for item in items}:  # type: ignore[attr-defined]
        for kind in vars(module).values():
            if (
                inspect.isclass(kind)
                and issubclass(kind, DiffusionPipeline)
                and "__call__" in vars(kind)
            ):
                kind.__call__ = _guided(kind.__call__)  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collections before and after each test, which else
    take longer than most tests.
    """
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of each test."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = {
            "outcome": report.outcome,
            "why": _last_line(report),
            "guided": _count[0],
        }
    if report.when == "teardown":
        _count[0] = 0


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    if os.environ.get(_REPORT):
        Path(os.environ[_REPORT]).write_text(json.dumps(_outcomes))


_FOLDER = pytest.StashKey[Any]()
_outcomes: dict[str, dict[str, Any]] = {}
_count = [0]
_running: list[Any] = []
"""The pipeline whose guided call runs."""


def _let_run() -> None:
    """Let tests run that are skipped as the pipeline is deprecated (Stable Cascade's), or that need
    torchvision where texts do without it (OmniGen's).
    """
    from diffusers.pipelines import pipeline_utils

    # Tests are skipped by this name; the pipelines have what it stood for when they were imported.
    vars(pipeline_utils)["DeprecatedPipelineMixin"] = type(
        "DeprecatedPipelineMixin", (pipeline_utils.DeprecatedPipelineMixin,), {}
    )
    if "diffusers.pipelines.omnigen.pipeline_omnigen" in sys.modules:
        from helpers.omnigen_texts import read_texts_alone

        read_texts_alone()


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    crash = getattr(report.longrepr, "reprcrash", None)
    return (
        ""
        if report.longrepr is None
        else " ".join(str(crash.message if crash else report.longrepr).split())
    )


def _guided(plain: Any) -> Any:
    """Return a pipeline's call with the guidance that its arguments ask for, made by guidestar."""
    if hasattr(plain, "plain"):
        return plain
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        import guidestar

        if hasattr(type(self), "_guidestar") or _running:  # a stage of a guided pipeline is plain
            return plain(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        try:
            kind = type(guidestar.guide(self, expression(self, bound.arguments)))
        except ValueError as error:
            pytest.skip(f"refused: {error}")
        if _perturbs(self, bound.arguments):
            kwargs = {**kwargs, "pag_scale": 0.0}  # the expression has it
        _running.append(self)
        try:
            _count[0] += 1
            return kind.__call__(self, *args, **kwargs)
        except ValueError as error:
            if not any(line in str(error) for line in _IN_A_CALL):
                raise
            pytest.skip(f"refused: {error}")
        finally:
            _running.clear()
            guidestar.guide(self, None)

    call.plain = plain  # type: ignore[attr-defined]
    return call


def expression(pipe: Any, arguments: Mapping[str, Any]) -> str:
    """Write what a pipeline's arguments ask for as an expression of ours."""
    guidance, rescaled = _guidance(pipe, arguments)
    if _perturbs(pipe, arguments):
        layers = _perturbed_layers(pipe)
        guidance += f" + pag({arguments['pag_scale']}, layers={layers})"
    return guidance + rescaled


def _perturbs(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a pipeline makes a perturbed pass of its own."""
    return hasattr(pipe, "pag_applied_layers") and bool(arguments.get("pag_scale"))


def _perturbed_layers(pipe: Any) -> tuple[str, ...]:
    """Return the layers that a pipeline perturbs."""
    net = getattr(pipe, "unet", None) or pipe.transformer
    own = net.attn_processors
    pipe._set_pag_attn_processor(pipe.pag_applied_layers, do_classifier_free_guidance=True)
    changed = pipe.pag_attn_processors
    net.set_attn_processor(own)
    return tuple(sorted(name.removesuffix(".processor") for name in changed))


def _guidance(pipe: Any, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Return the terms of a pipeline's guidance without perturbed passes, and its rescaling."""
    if _takes_the_scale(pipe, arguments):
        return "cond", ""
    scale = _scale(pipe, arguments)
    if scale is None:
        asked = "prompt" in arguments or arguments.get("class_labels") is not None
        return ("cond" if asked else "uncond"), ""
    written, shift = _written(*(kind.__name__ for kind in type(pipe).__mro__))
    begins = _begins(type(pipe), shift)
    if written is None or scale <= begins or arguments.get("image_guidance_scale", 1) < 1:
        return "cond", ""
    if "image_guidance_scale" in arguments:
        guidance = f"pix2pix({arguments['image_guidance_scale']}, {scale})"
    elif arguments.get("guidance_scale_2") not in (None, scale):
        rho = pipe.config.boundary_ratio / (1 - pipe.config.boundary_ratio)
        second = arguments["guidance_scale_2"]
        guidance = (
            f"cfg({scale}, interval=({rho}, inf)) + cfg({second}, interval=(0, {rho * 0.999999}))"
        )
    else:
        guidance = written.format(scale + shift)
    if not arguments.get("guidance_rescale"):
        return guidance, ""
    space = _SPACES[pipe.scheduler.config.get("prediction_type", "flow_prediction")]
    return guidance, f" | rescale({arguments['guidance_rescale']}, space='{space}')"


def _takes_the_scale(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a pipeline's network takes the scale as an input, or is distilled: it then
    makes no negative pass.
    """
    told = lambda part: getattr(getattr(pipe, part, None), "config", None)
    if getattr(told("unet"), "time_cond_proj_dim", None) is not None:
        return True
    embeds = getattr(told("transformer"), "guidance_embeds", False)
    distilled = getattr(getattr(pipe, "config", None), "is_distilled", False)
    return bool(distilled or (embeds and "true_cfg_scale" not in arguments))


@functools.cache
def _written(*names: str) -> tuple[str | None, float]:
    """Return a class's guidance as an expression with a place for its scale, None where it makes
    no negative pass; and what that place takes beyond its scale: 0, or 1 where it writes
    c + s(c − u). The names are those of the class and of what it is derived from: some tests
    derive one that needs no safety checker.
    """
    from helpers.zoo.base import SCALE
    from helpers.zoo.table import entries

    entry = next((entries()[name] for name in names if name in entries()), None)
    if entry is None:
        return "cfg({})", 0.0
    if entry.guidance is None:
        return None, 0.0
    found = re.match(r"cfg\((\d+\.\d*)", str(entry.guidance))
    if found is None:
        return "cfg({})", 0.0
    own = next(iter(entry.scale.values()), SCALE)
    rest = str(entry.guidance)[found.end() :]
    return f"cfg({{}}{rest}", float(found[1]) - own


def _begins(kind: type, shift: float) -> float:
    """Return the scale up to which a class makes no negative pass: 1, or less where its guidance
    counts from there and its own test of the scale lets 1 pass (Z-Image; not Kandinsky 3).
    """
    own = getattr(kind, "do_classifier_free_guidance", None)
    if shift and own is not None and not own.fget(SimpleNamespace(_guidance_scale=1.0)):
        return 1.0
    return 1 - shift


def _scale(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    """Return the scale of a pipeline's own guidance, 1 where it makes no negative pass; None where
    it has none.
    """
    guider = getattr(pipe, "guider", None)
    if guider is not None:  # with the original formulation it writes c + s(c − u)
        return guider.guidance_scale + float(guider.use_original_formulation)
    if "true_cfg_scale" in arguments:
        negative = [arguments.get(k) for k in ("negative_prompt", "negative_prompt_embeds")]
        return arguments["true_cfg_scale"] if any(n is not None for n in negative) else 1.0
    if "max_guidance_scale" in arguments:
        return arguments["max_guidance_scale"]
    if "decoder_guidance_scale" in arguments:  # two stages, of the same scale in the tests
        return arguments["prior_guidance_scale"]
    return (
        None
        if "max_sequence_length" in arguments
        and not any(name.startswith("negative_prompt") for name in arguments)
        else arguments.get("guidance_scale")
    )


# --- what the tests fetch ---


def _stand_ins(home: Path) -> dict[str, str]:
    """Write tokenizers of letters, and small text encoders; return their folders by name."""
    from transformers import (
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
        T5TokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    letters = [
        *string.ascii_lowercase,
        *(c + "</w>" for c in string.ascii_lowercase),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    CLIPTokenizer(
        vocab={t: i for i, t in enumerate(letters)}, merges=[], model_max_length=77
    ).save_pretrained(home / "clip")
    sizes = {
        "vocab_size": 1103,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 5,
        "num_heads": 4,
    }
    for name, kind, config in (
        ("t5", T5EncoderModel, T5Config),
        ("umt5", UMT5EncoderModel, UMT5Config),
    ):
        kind(config(**sizes)).save_pretrained(home / name)
        words = [
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            ("▁", -2.0),
            *((c, -3.0) for c in string.ascii_letters),
        ]
        T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=512).save_pretrained(home / name)
    _decoders(home)
    _seeing(home)
    tiny = {"clip": "clip", "t5": "t5", "umt5": "umt5", "T5ForConditionalGeneration": "t5"}
    tiny |= {"Qwen2VLForConditionalGeneration": "qwen", "BertModel": "bert"}
    tiny |= {"LlamaForCausalLM": "llama", "SiglipVisionModel": "siglip"}
    found = {f"hf-internal-testing/tiny-random-{name}": home / at for name, at in tiny.items()}
    found["hf-internal-testing/dummy-gemma"] = home / "gemma"
    found["hf-internal-testing/llama-tokenizer"] = home / "llama"
    found["Qwen/Qwen3-Embedding-0.6B"] = home / "qwen"
    found["finetrainers/dummy-hunyaunvideo"] = home / "hunyuan"
    found["hf-internal-testing/tiny-gemma3"] = home / "gemma3"
    found["THUDM/glm-4-9b-chat"] = home / "glm"
    return {name: str(at) for name, at in found.items()}


def _decoders(home: Path) -> None:
    """Write tokenizers of Qwen2, Gemma, Llama and BERT, of bytes or letters, and small networks of
    the last two.
    """
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        GemmaTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaTokenizer,
        Qwen2Tokenizer,
    )

    printable = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    words = [*printable, *(chr(256 + k) for k in range(68)), "<|endoftext|>"]  # every byte
    qwen = Qwen2Tokenizer(vocab={t: i for i, t in enumerate(words)}, merges=[])
    qwen.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    qwen.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    qwen.save_pretrained(home / "qwen")
    made = Qwen2Tokenizer(vocab={t: i for i, t in enumerate(words)}, merges=[], padding_side="left")
    made.save_pretrained(home / "glm")
    # Networks of the tests know eight words.
    few = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "e", "a"]
    # A text without letters has a beginning all the same: Lumina takes the mean over tokens.
    GemmaTokenizer(
        vocab={t: i for i, t in enumerate(few)}, merges=[], add_bos_token=True
    ).save_pretrained(home / "gemma")
    llama = ["<unk>", "<s>", "</s>", "▁", *string.ascii_letters, *string.digits, ".", ","]
    for at in ("llama", "hunyuan/tokenizer"):
        made = LlamaTokenizer(vocab={t: i for i, t in enumerate(llama)}, merges=[])
        made.pad_token = "</s>"
        made.save_pretrained(home / at)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    sizes = {**small, "num_hidden_layers": 2}
    narrow = {**sizes, "hidden_size": 16}  # as wide as the hub's, on which HiDream's tests rely
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, **narrow)).save_pretrained(home / "llama")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*marks, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    BertTokenizer(vocab={t: i for i, t in enumerate(letters)}).save_pretrained(home / "bert")
    BertModel(BertConfig(vocab_size=1124, **sizes)).save_pretrained(home / "bert")


def _seeing(home: Path) -> None:
    """Write small networks that see pictures, Gemma 3 and SigLIP, and what prepares their input."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        GemmaTokenizer,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    heads, patches = {"num_attention_heads": 4}, {"image_size": 30, "patch_size": 6}
    words = {"vocab_size": 128, "num_key_value_heads": 2, "head_dim": 8}
    text, vision = {**sizes, **heads, **words}, {**sizes, **heads, **patches}
    gemma = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=25)
    Gemma3ForConditionalGeneration(gemma).save_pretrained(home / "gemma3")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters]
    made = GemmaTokenizer(
        vocab={t: i for i, t in enumerate(marks)}, merges=[], model_max_length=1024
    )
    made.save_pretrained(home / "gemma3")
    SiglipVisionModel(SiglipVisionConfig(**vision)).save_pretrained(home / "siglip")
    SiglipImageProcessor().save_pretrained(home / "siglip")


def _redirect(folders: Mapping[str, str]) -> None:
    """Let transformers read the stand-ins where the hub's names are given."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    for kind in (
        transformers.AutoTokenizer,
        transformers.AutoConfig,
        transformers.PreTrainedModel,
        PreTrainedTokenizerBase,
        ImageProcessingMixin,
    ):
        own = kind.from_pretrained.__func__

        def read(cls: Any, name: Any, *args: Any, own: Any = own, **more: Any) -> Any:
            return own(cls, folders.get(str(name), name), *args, **more)

        kind.from_pretrained = classmethod(read)  # type: ignore[method-assign, assignment]


# --- the runner ---


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What became of one family's tests.

    Args:
        passed: pass plain and guided, with a guided pipeline.
        untouched: pass plain and guided, and call no pipeline.
        refused: pass plain; guidestar refuses the pipeline by name.
        broken: pass plain and fail guided, with the reason.
        plain: fail plain (what only the hub, or another version, would give).
        skipped: by Diffusers.
    """

    passed: list[str]
    untouched: list[str]
    refused: dict[str, str]
    broken: dict[str, str]
    plain: dict[str, str]
    skipped: list[str]


def compare(checkout: Path, family: str, options: Sequence[str] = ()) -> Compared:
    """Run one family's tests plain and guided."""
    plain, guided = (_run(checkout, family, options, how) for how in ("", "1"))
    if not plain:
        raise RuntimeError(f"no test of {family} was run")
    good = [n for n, r in plain.items() if r["outcome"] == "passed"]
    kept = [n for n in good if guided[n]["outcome"] == "passed"]
    refused = {n: guided[n]["why"] for n in good if guided[n]["outcome"] == "skipped"}
    return Compared(
        passed=[n for n in kept if guided[n]["guided"]],
        untouched=[n for n in kept if not guided[n]["guided"]],
        refused=refused,
        broken={n: guided[n]["why"] for n in good if guided[n]["outcome"] == "failed"},
        plain={n: r["why"] for n, r in plain.items() if r["outcome"] == "failed"},
        skipped=[n for n, r in plain.items() if r["outcome"] == "skipped"],
    )


def _run(
    checkout: Path, family: str, options: Sequence[str], guided: str
) -> dict[str, dict[str, Any]]:
    here, source = Path(__file__).parent, Path(__file__).parent.parent / "src"
    paths = [str(source), str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        told = {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            _GUIDED: guided,
            _REPORT: str(report),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"tests/pipelines/{family}",
            "-q",
            "-p",
            "diffusers_suite",
            "-p",
            "no:cacheprovider",
            *options,
        ]
        done = subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.is_file() or done.returncode not in (0, 1):
            raise RuntimeError(
                f"{family}: pytest ended with "
                f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
            )
        return json.loads(report.read_text())


def main(arguments: Sequence[str]) -> int:
    """Compare families, and print a table."""
    cut = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    checkout, *families = arguments[:cut]
    broken = 0
    print("family | passed | untouched | refused | broken | fails plain | skipped", flush=True)
    for family in families or FAMILIES:
        try:
            c = compare(Path(checkout), family, arguments[cut:])
        except RuntimeError as error:  # the families after it are run all the same
            print(f"{family} | {error}", flush=True)
            broken += 1
            continue
        print(
            f"{family} | {len(c.passed)} | {len(c.untouched)} | {len(c.refused)} | "
            f"{len(c.broken)} | {len(c.plain)} | {len(c.skipped)}",
            flush=True,
        )
        for why, count in Counter(c.refused.values()).items():
            print(f"  refused in {count}: {why.partition('refused: ')[2][:200]}", flush=True)
        for kind in ("broken", "plain"):
            for name, why in getattr(c, kind).items():
                print(f"  {kind} {name.removeprefix('tests/pipelines/')}: {why[:300]}", flush=True)
        broken += len(c.broken)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
