"""Sample any number of pictures into a folder: written as they are made, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..guidance.losses import Loss
from ..io.files import make_folder
from ..io.images import read_settings
from .model import Model, Watch
from .request import Request
from .samples import Carried, Samples, Settings, file_name
from .weights import digest_of

BATCH = 32
"""Pictures that are sampled at once."""

NOT_COMPARED = {"versions", "threads"}
"""Settings in which a picture may differ and still be of the same run."""

Losses = Callable[[Sequence[int]], Mapping[str, Loss] | None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job.

    Args:
        paths: of all pictures, in order.
        kept: how many were there already, from an earlier run of the same settings.
        evaluations: network evaluations of a sample that was made (the mean; 0 if none was).
        guidance: the expression.
    """

    paths: list[Path]
    kept: int
    evaluations: float
    guidance: str


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Pictures to make: picture k has the number ``numbers[k]``, its condition and its seed.

    Args:
        model: of pictures.
        request: the run of all pictures, without losses: the condition and the seed of each.
        numbers: of each picture, in its file's name; evenly spaced.
        losses: returns the losses of the pictures of some numbers.
        batch: pictures that are sampled at once.
    """

    model: Model
    request: Request
    numbers: Sequence[int]
    losses: Losses = lambda numbers: None
    batch: int = BATCH

    def parts(self) -> Iterator[slice]:
        """Yield the batches; one for all, where the expression has a scale for each picture."""
        size, count = min(self.batch, len(self.numbers)), len(self.numbers)
        try:
            self.request.guidance.check_samples(size)
        except ValueError:
            self.request.guidance.check_samples(count)
            size = count
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def part(self, part: slice) -> Request:
        """Return the run of one batch."""
        return self.request.take(part, self.losses(self.numbers[part]))


def sample_to_folder(job: Batches, folder: Path, watch: Watch | None = None) -> Done:
    """Sample pictures into a folder, batch by batch; go on where an earlier run of the job stopped.

    A batch all of whose pictures are there, with the same settings and of a model of the same
    weights, is not made again.

    Raises:
        ValueError: a picture of the same name has other settings, or is of other weights.
        OSError: the folder cannot be written to.
    """
    make_folder(folder)
    parts = list(job.parts())
    paths: list[Path] = []
    kept, evaluations = 0, []
    weights = digest_of(job.model)
    for done, part in enumerate(parts):
        request, numbers = job.part(part), job.numbers[part]
        settings = replace(job.model.settings(request), weights=weights)
        files = [folder / file_name(settings, i, number) for i, number in enumerate(numbers)]
        paths += files
        if _is_there(settings, files):
            kept += len(files)
            continue
        samples = job.model.run(request, watch=_shifted(watch, done, len(parts)))
        replace(samples, settings=replace(samples.settings, weights=weights)).save(folder, numbers)
        evaluations += samples.evaluations
    mean = sum(evaluations) / len(evaluations) if evaluations else 0.0
    return Done(paths=paths, kept=kept, evaluations=mean, guidance=str(job.request.guidance))


def _is_there(settings: Settings, files: Sequence[Path]) -> bool:
    """Return whether all pictures of a batch are there; refuse those of another run."""
    there = [file.is_file() for file in files]
    wanted = _comparable(asdict(settings))
    for index, file in enumerate(files):
        if not there[index]:
            continue
        if other := _difference(_comparable(_settings_in(file)), {**wanted, "index": index}):
            raise ValueError(
                f"{file} was made with other {other}; name another folder with --out, or remove it"
            )
    # What depended on something that pictures do not carry may have changed: it is made again.
    return all(there) and not wanted["lacking"]


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """Name what differs: settings, or the weights alone; nothing where all agree."""
    names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if names == ["weights"] and found.get("weights"):
        return "weights of the model"
    return f"settings ({', '.join(names)})" if names else ""


def _settings_in(file: Path) -> dict[str, object]:
    try:
        return read_settings(file)
    except ValueError:
        return {}


def _comparable(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings as JSON has them, without those that may differ."""
    left_out = {*NOT_COMPARED, "number", "stride"}
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    return {key: value for key, value in lists.items() if key not in left_out}


def _shifted(watch: Watch | None, done: int, parts: int) -> Watch | None:
    """Let a batch's progress count as its share of the whole."""
    return watch and (lambda step, steps: watch(done * steps + step, parts * steps))


def again_to_folder(
    model: Model, settings: Carried, folder: Path, watch: Watch | None = None
) -> Samples:
    """Repeat the batch that a picture was made in, into a folder, under the same names."""
    samples = model.again(settings, watch)
    samples = replace(samples, settings=replace(samples.settings, weights=digest_of(model)))
    first = int(settings.get("number", 0)) - int(settings.get("index", 0)) * (
        stride := int(settings.get("stride", 1))
    )
    samples.save(folder, [first + i * stride for i in range(len(samples.x))])
    return samples
