"""Find the folder of a model: one that ships, a path, or a repository of the hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from ..diffusers.read.hub import fetch, repository_of
from .manifest import NAME
from .shipped import SHIPPED, available

if TYPE_CHECKING:
    pass


def split_variant(name: str | Path, variant: str | None) -> tuple[str | Path, str | None]:
    """Split "model:variant" where a model of that name has variants."""
    base, sign, last = str(name).rpartition(":")
    if variant is not None or not sign or Path(name).is_dir():
        return name, variant
    shipped = (SHIPPED / base / NAME).is_file()
    return (base, last) if shipped or (Path(base) / NAME).is_file() else (name, None)


def find_folder(name: str | Path) -> Path:
    """Return the folder of a model that ships, of a path, or of the hub."""
    folder = SHIPPED / str(name) if (SHIPPED / str(name) / NAME).is_file() else Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{folder} is a file, and a model is a folder; {_checkpoint(folder)}")
    repository = None if isinstance(name, Path) else repository_of(name)
    if repository is not None:
        return fetch(repository)
    raise ValueError(
        f"unknown model {str(name)!r}{_near(folder)}; give one of {', '.join(available())}, a "
        "folder with a network and a scheduler, or owner/model of the Hugging Face hub"
    )


def _near(folder: Path) -> str:
    """Describe the part of a missing path that exists, or name the shipped model it resembles."""
    if resembled := get_close_matches(str(folder), available(), n=1):
        return f" (did you mean {resembled[0]!r}?)"
    there = next((p for p in folder.parents if p.exists()), Path())
    if there in (Path(), Path("/"), Path("..")):
        return ""
    missing = f"there is {there}, but no {folder.relative_to(there).parts[0]!r} in it"
    address = f"https://huggingface.co/{folder}" if len(folder.parts) == 2 else ""
    return f" ({missing}{f'; the repository of that name is {address}' if address else ''})"


def _checkpoint(file: Path) -> str:
    """Describe how a model in one file is read."""
    if file.suffix == ".pkl":
        return (
            "a .pkl carries code, which is not run here: load it by its authors' code where "
            "you trust it, and give the module to guidestar.checkpoints.edm.edm_model"
        )
    ours = (
        "guided-diffusion's with guidestar.checkpoints.adm.adm_model, DiT's with "
        "guidestar.checkpoints.dit.dit_model"
    )
    return (
        f"read {ours}; a Stable Diffusion in one file becomes a folder by Diffusers' "
        "from_single_file and save_pretrained"
    )
