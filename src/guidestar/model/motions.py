"""The motions of a model: its skeleton, the lengths of samples, and files of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from torch import Tensor

from ..core.denoiser import Denoiser
from ..io.files import make_folder, whole_or_not
from ..motion import write_bvh
from ..motion.body import Body
from ..networks.conditions import Conditions
from ..networks.lengths import LengthEncoder
from ..networks.windows import Windowed
from .samples import Samples, file_name

if TYPE_CHECKING:
    from .model import Model
    from .parts import ModelParts


def body_of_model(model: ModelParts) -> Body | None:
    """Return the skeleton of a model of motions; None of another."""
    values = model.card.get("motion")
    return None if values is None else Body.from_json(values, f"the card of {model.name!r}")


def need_body(model: ModelParts) -> Body:
    """Return the skeleton of a model of motions.

    Raises:
        ValueError: the model makes no motions.
    """
    body = body_of_model(model)
    if body is None:
        raise ValueError(
            f'the model {model.name!r} makes no motions; give one of data of the kind "motion"'
        )
    return body


def lengths_of(model: ModelParts, names: Sequence[str | int] | None, count: int) -> list[int]:
    """Return how many frames of each sample are its motion.

    Args:
        model: of motions.
        names: the condition of each sample.
        count: number of samples.
    """
    encoder, whole = model.encoder, model.shape[0]
    if isinstance(model.denoiser, Windowed):
        return [whole] * count
    if names is None or not isinstance(encoder, Conditions | LengthEncoder):
        return [whole] * count
    if isinstance(encoder, LengthEncoder):
        return [encoder.parse(n) for n in names]
    length = encoder.length
    return [int(encoder.parse(n)[length]) if length else whole for n in names]


def with_length(model: ModelParts, names: Sequence[str | int] | None, length: int) -> list[str]:
    """Return the conditions of samples that are ``length`` frames long.

    Args:
        model: of motions.
        names: other conditions; None for one sample without any.
        length: in frames.

    Raises:
        ValueError: the model takes no length, or none as long.
    """
    encoder = model.encoder
    if isinstance(encoder, LengthEncoder):
        encoder.parse(length)
        return [str(length)] * len(names or [""])
    if not isinstance(encoder, Conditions) or encoder.length is None:
        raise ValueError(f"the model {model.name!r} takes no length; leave it out")
    for part in encoder.parts.values():
        if isinstance(part, LengthEncoder):
            part.parse(length)
    return [f"{encoder.split_length(n)[0]}; {encoder.length}={length}" for n in names or [""]]


def lengthen(model: Model, length: int, overlap: int) -> Model:
    """Return a model of longer motions than a model learned, by windows that overlap.

    Every window is estimated under the motion's condition, in the length that was trained, and
    estimates are blended (`guidestar.networks.windows.Windowed`). Its classifiers and its judge
    know motions of that length alone, and are left out.

    Args:
        model: of motions.
        length: in frames, all samples.
        overlap: frames that neighbouring windows share.

    Raises:
        ValueError: the model makes no motions, the length is not above the one that was trained,
            or the overlap is not below it.

    Example:
        ``lengthen(model, 150, overlap=20).sample("walk")``
    """
    need_body(model)
    size, channels = model.shape
    if length <= size:
        raise ValueError(
            f"motions of {length} frames need no windows, as {model.name!r} was trained on {size}; "
            "leave the overlap out"
        )

    def windowed(denoiser: Denoiser) -> Denoiser:
        return Windowed(denoiser, size=size, overlap=overlap, dim=0)

    return replace(
        model,
        denoiser=windowed(model.denoiser),
        shape=(length, channels),
        nets={name: (windowed(net), encoder) for name, (net, encoder) in model.nets.items()},
        classifiers={},
        judge=None,
    )


def motions(model: ModelParts, samples: Samples) -> list[Tensor]:
    """Return the numbers ``[T_k, C]`` of each sample in their units, without padding."""
    lengths = lengths_of(model, samples.settings.cond, len(samples.x))
    return [x[:length] for x, length in zip(samples.images, lengths, strict=True)]


def write_motions(
    model: ModelParts, samples: Samples, folder: Path | str, numbers: Sequence[int] | None = None
) -> list[Path]:
    """Write each sample as a BVH file of the model's skeleton, and as the positions of its joints.

    The latter are in a NPZ file beside it: ``joints [T, J, 3]`` (float32, y upwards, in the unit
    of the BVH file), ``names``, ``parents`` and ``rate``.

    Args:
        model: of motions.
        samples: its samples.
        folder: made if it is missing.
        numbers: what the files are numbered by; 0, 1, … by default.

    Returns:
        The BVH files.

    Raises:
        ValueError: the model makes no motions.
        OSError: the folder cannot be written to.
    """
    body, where, paths = need_body(model), make_folder(Path(folder)), []
    for k, x in enumerate(motions(model, samples)):
        number = k if numbers is None else numbers[k]
        path = (where / file_name(samples.settings, k, number)).with_suffix(".bvh")
        write_bvh(body.to_bvh(x), path)
        with whole_or_not(path.with_suffix(".npz")) as beside, beside.open("wb") as file:
            write_joints(body, x, file)
        paths.append(path)
    return paths


def write_joints(body: Body, numbers: Tensor, file: IO[bytes]) -> None:
    """Write the positions of a motion's joints as NPZ (see `write_motions`).

    Args:
        body: the skeleton.
        numbers: ``[T, C]``, in their units.
        file: an open file.
    """
    import numpy as np

    joints, skeleton = body.joints(numbers.double().cpu()), body.format.skeleton
    np.savez_compressed(
        file,
        joints=joints.float().numpy(),
        names=np.array(skeleton.names),
        parents=np.array(skeleton.parents),
        rate=np.float64(body.rate),
    )
