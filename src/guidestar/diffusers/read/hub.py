"""Fetch models from the Hugging Face hub: only the files that are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...io.documents import one_line

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)/?")
_FILES = frozenset(
    {
        *("safetensors", "bin", "ckpt", "pt", "pth", "pkl", "gguf", "onnx", "npz", "npy"),
        *("json", "toml", "yaml", "yml", "txt", "md", "csv", "parquet", "zip", "tar", "py"),
        *("png", "jpg", "jpeg", "webp", "gif", "tif", "tiff", "bmp"),
    }
)
"""Suffixes of files. A repository may have a dot in its name (``sd-v1.5``), but none of these."""
_PATIENCE = 10.0
"""Seconds to wait for the hub's answer."""
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
_SETTINGS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", *_PARTS)
_SHARD = r"(?:-\d{5}-of-\d{5})"
_WEIGHTS = re.compile(
    rf"(?:diffusion_pytorch_model|model)"
    rf"(?:(?:\.([^.]+?))?{_SHARD}?\.safetensors|{_SHARD}\.([^.]+)\.safetensors|\.safetensors(?:\.([^.]+)\.index|\.index(?:\.([^.]+))?)\.json)"
)
"""Names of files of weights and of indices of shards, with the variant in them."""


def repository_of(name: str) -> str | None:
    """Return the repository that a name or an address means; None if it means a path.

    ``owner/model`` means a path if it ends in a file's suffix, or if there is a file or folder
    ``owner`` here. The address ``https://huggingface.co/owner/model`` always means the repository.
    """
    if address := _ADDRESS.fullmatch(name):
        return address[1]
    path = Path(name)
    is_path = path.parent.exists() or path.suffix[1:].lower() in _FILES
    return name if _NAME.fullmatch(name) and not is_path else None


def fetch(name: str) -> Path:
    """Fetch the parts of a repository that a model is read from (or find them where they were
    fetched before).

    Settings, tokenizers and safetensors only; of weights in several variants the full ones.

    Raises:
        ValueError: no network, no such repository, or one of pickled weights only.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        about = HfApi().model_info(name, timeout=_PATIENCE)  # one request, which is not repeated
        files = [file.rfilename for file in about.siblings or ()]
    except Exception as error:
        return _find_cached(name, error)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted(name, files)))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}: the download from the Hugging Face hub failed ({one_line(error)[:200]}); "
            "try again, and what was fetched is kept"
        ) from error


def _find_cached(name: str, error: Exception) -> Path:
    """Return what was fetched before, where the hub does not answer."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        raise ValueError(
            f"{name}: there is no such folder, and no such repository on the Hugging Face hub "
            "(or it is private, or gated: 'hf auth login')"
        ) from error
    for file in ("guidestar.json", "model_index.json", "config.json"):
        if isinstance(found := try_to_load_from_cache(name, file), str):
            return Path(found).parent
    raise ValueError(
        f"{name}: there is no such folder, and the Hugging Face hub does not answer "
        f"({type(error).__name__}: {one_line(error)[:120]}); give the path of a folder, or try "
        "again with a network"
    ) from error


def wanted(name: str, files: Sequence[str]) -> list[str]:
    """Choose the files of a repository that a model is read from.

    Raises:
        ValueError: it has no weights of safetensors.
    """
    if "guidestar.json" in files:
        return [f for f in files if f.endswith((".json", ".safetensors", ".toml", ".txt", ".md"))]
    in_parts = any(f.startswith(("unet/", "transformer/")) for f in files)
    weights = [f for f in files if _is_weights(f, in_parts)]
    chosen = [
        f
        for home in dict.fromkeys(map(_home, weights))
        for f in _of_one_variant([w for w in weights if _home(w) == home])
    ]
    if not any(f.endswith(".safetensors") for f in chosen):
        pickled = next((f for f in files if f.endswith((".bin", ".ckpt", ".pt", ".pth"))), None)
        what = (
            f"pickled weights only ({pickled}), which can run any code and are not read"
            if pickled
            else "no weights"
        )
        raise ValueError(
            f"{name}: this repository holds {what}; look for one with safetensors, or write its "
            "pipeline anew with save_pretrained"
        )
    settings = [
        f
        for f in files
        if f.endswith((".json", ".txt", ".model"))
        and not _WEIGHTS.fullmatch(f.rpartition("/")[2])
        and _home(f) in ("", *_SETTINGS)
    ]
    return [*settings, *chosen]


def _home(file: str) -> str:
    return file.rpartition("/")[0]


def _is_weights(file: str, in_parts: bool) -> bool:
    homes = _PARTS if in_parts else ("", *_PARTS)
    return _home(file) in homes and _WEIGHTS.fullmatch(file.rpartition("/")[2]) is not None


def _of_one_variant(weights: Sequence[str]) -> list[str]:
    """Return a part's full weights; where there are none, those of half precision, else those of
    the first variant.
    """
    variants = {f: _variant(f) for f in weights}
    chosen = next((v for v in ("", "fp16") if v in variants.values()), min(variants.values()))
    return [f for f, v in variants.items() if v == chosen]


def _parts(file: str) -> tuple[str | None, ...]:
    found = _WEIGHTS.fullmatch(file.rpartition("/")[2])
    return found.groups() if found else ()


def _variant(file: str) -> str:
    """Return the variant of a file of weights; "" for the full ones."""
    return next(filter(None, _parts(file)), "")
