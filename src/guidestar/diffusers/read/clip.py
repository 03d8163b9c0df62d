"""CLIP as transformers writes it: a folder or the name of a model on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import torch
from safetensors.torch import save
from torch import Tensor

from ...io.documents import as_value_error, check_values, json_object, one_line, read_json
from ...io.files import make_folder, name_write_errors, whole_or_not
from ...networks.clip import CLIP, Vision
from ..objects import Tokenizer, Tower
from .encoders import read_text_encoder
from .safetensors_io import encoder_settings, fill, read_safetensors, read_tensors
from .settings import PIXELS
from .text_encoder import TextEncoder
from .towers import build_tower, fitting, read_tokenizer, renamed
from .weights_files import weights_file


class PixelRange(TypedDict):
    """Mean and standard deviation of each colour, as an image tower expects them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_PIXELS, _TIME = "preprocessor_config.json", "time.safetensors"


def find_text(name: str | Path) -> TextEncoder:
    """Find a CLIP text encoder: a folder with ``text_encoder/`` and ``tokenizer/``, a CLIP's
    folder, or a name on the hub.

    Raises:
        ValueError: it is not there, or a part of it is missing.
    """
    folder = Path(name)
    if (folder / "text_encoder").is_dir():
        return read_text_encoder(folder)
    from transformers import CLIPTextModelWithProjection

    if folder.is_dir():
        text = _read_tower(folder, "text_config")
        return TextEncoder(text, fitting(read_tokenizer(folder), text, folder))
    return TextEncoder(_read_pretrained(CLIPTextModelWithProjection, name), _tokenizer(name))


def read_clip(name: str | Path) -> CLIP:
    """Read a whole CLIP: transformers' ``CLIPModel`` folder with its tokenizer, or a name on the
    hub.

    Raises:
        ValueError: it is not there, or a part of it is missing.
    """
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    folder = Path(name)
    if folder.is_dir():
        return _read_whole(folder)
    tokenizer = _tokenizer(name)
    text, tower = (
        _read_pretrained(CLIPTextModelWithProjection, name),
        _read_pretrained(CLIPVisionModelWithProjection, name),
    )
    vision = Vision(tower, **_hub_pixels(name))
    return CLIP(text, tokenizer, vision, log_scale=_log_scale(name)).eval().requires_grad_(False)


def _read_whole(folder: Path) -> CLIP:
    text, tower = (_read_tower(folder, part) for part in ("text_config", "vision_config"))
    pixels = read_pixels(folder)
    factor = read_tensors(weights_file(folder, "model")).get("logit_scale")
    if factor is None or factor.numel() != 1:
        raise ValueError(
            f"{folder}: its weights hold no number logit_scale, so it is no whole CLIP"
        )
    tokenizer = fitting(read_tokenizer(folder), text, folder)
    return (
        CLIP(text, tokenizer, Vision(tower, **pixels), log_scale=float(factor))
        .eval()
        .requires_grad_(False)
    )


def _read_tower(folder: Path, part: str) -> Tower:
    """Read the text tower ("text_config") or the image tower ("vision_config") of a whole CLIP."""
    file, kind = (
        folder / "config.json",
        {"text_config": "CLIPText", "vision_config": "CLIPVision"}[part],
    )
    about = encoder_settings(file)
    check_values(file, about, {part: json_object}, [part])
    rename = lambda tower, tensors: {
        k: v for k, v in renamed(tensors, tower).items() if k in tower.state_dict()
    }
    return build_tower(file, about[part], f"{kind}ModelWithProjection", torch.float32, names=rename)


def read_pixels(folder: Path) -> PixelRange:
    """Read the mean and the standard deviation of each colour that a tower expects.

    Raises:
        ValueError: the file is missing or damaged, or they are not three numbers each; it is named.
    """
    file = folder / _PIXELS
    about = read_json(file)
    check_values(file, about, PIXELS, list(PIXELS))
    return PixelRange(mean=tuple(about["image_mean"]), std=tuple(about["image_std"]))


def write_clip(clip: CLIP, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a clean CLIP as a folder that transformers' ``CLIPModel.from_pretrained`` reads."""
    from transformers import CLIPConfig, CLIPModel

    tower, text = clip.vision.tower, clip.text
    sizes = {
        "projection_dim": text.config.projection_dim,
        "logit_scale_init_value": float(clip.log_scale.detach()),
    }
    whole = CLIPModel(
        CLIPConfig(text_config=text.config.to_dict(), vision_config=tower.config.to_dict(), **sizes)
    )
    whole.load_state_dict(
        {**text.state_dict(), **tower.state_dict(), "logit_scale": clip.log_scale}
    )
    write_pretrained(whole, folder, dtype)
    with name_write_errors(folder / "tokenizer.json"):
        clip.tokenizer.save_pretrained(folder)
    _write_pixels(clip.vision, folder)


def write_tower(vision: Vision, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write an image tower as transformers' ``CLIPVisionModelWithProjection`` reads it; the
    embedding of noise beside.
    """
    write_pretrained(vision.tower, folder, dtype)
    _write_pixels(vision, folder)
    if vision.time is not None:
        with whole_or_not(folder / _TIME) as beside:
            beside.write_bytes(
                save(
                    {k: v.to(dtype).cpu().contiguous() for k, v in vision.time.state_dict().items()}
                )
            )


def read_tower(folder: Path) -> Vision:
    """Read what `write_tower` wrote.

    Raises:
        ValueError: a file is missing or damaged; it is named.
    """
    file = folder / "config.json"
    tower = build_tower(
        file, encoder_settings(file), "CLIPVisionModelWithProjection", torch.float32
    )
    vision = Vision(tower, noise_aware=(folder / _TIME).is_file(), **read_pixels(folder))
    if vision.time is not None:
        fill(vision.time, folder / _TIME, read_safetensors(folder / _TIME), torch.float32)
    return vision


def write_pretrained(module: Tower, folder: Path, dtype: torch.dtype) -> None:
    """Write one of transformers' modules as its ``from_pretrained`` reads it, in ``dtype``; the
    module stays as it is.
    """
    make_folder(folder)
    tensors = {
        k: (v.to(dtype) if v.is_floating_point() else v).cpu().contiguous()
        for k, v in module.state_dict().items()
    }
    with whole_or_not(folder / "model.safetensors") as beside:
        beside.write_bytes(save(tensors, {"format": "pt"}))
    config = module.config.to_dict() | {
        "architectures": [type(module).__name__],
        "dtype": str(dtype).removeprefix("torch."),
    }
    with whole_or_not(folder / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_pixels(vision: Vision, folder: Path) -> None:
    with whole_or_not(folder / _PIXELS) as beside:
        beside.write_text(
            json.dumps({"image_mean": list(vision.mean), "image_std": list(vision.std)}) + "\n"
        )


def _log_scale(name: str | Path) -> float:
    from transformers import CLIPModel

    scale = _read_pretrained(CLIPModel, name).logit_scale
    assert isinstance(scale, Tensor)
    return float(scale)


def _hub_pixels(name: str | Path) -> PixelRange:
    from transformers import CLIPImageProcessor

    try:
        processor = CLIPImageProcessor.from_pretrained(str(name))
    except Exception as error:
        raise ValueError(
            f"{name}: no settings of its pixels ({_PIXELS}) could be read ({one_line(error)[:200]})"
        ) from error
    return PixelRange(mean=tuple(processor.image_mean), std=tuple(processor.image_std))


def _read_pretrained(kind: type[Tower], name: str | Path) -> Tower:
    """Load transformers' class from a folder or the hub; only safetensors, never a pickle."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # of the tensors of the other tower
    logging.disable_progress_bar()
    try:
        return (
            kind.from_pretrained(str(name), use_safetensors=True, torch_dtype=torch.float32)
            .eval()
            .requires_grad_(False)
        )
    except Exception as error:
        raise ValueError(
            f"{name}: no CLIP of this name or path could be read ({one_line(error)[:200]})"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(name: str | Path) -> Tokenizer:
    from transformers import CLIPTokenizer

    with as_value_error(f"{name}: no tokenizer of this name could be read"):
        return CLIPTokenizer.from_pretrained(str(name))
