"""Cascades: a model of small pictures, and models that enlarge them, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.rng import checked_seeds
from ..guidance import Guidance, Plan
from ..guidance.term import Direction
from ..io.documents import JSONObject, read_json
from ..io.files import check_name, make_folder
from ..io.images import write_text
from ..sampling import Solver
from .cascade_stages import CascadeSamples, StageSettings, asdict_shallow, stage_seed
from .folder import CASCADE as NAME
from .folder import WeightsError
from .folder import load as load_model
from .manifest import Card
from .model import Model, Watch
from .protocols import Judge, TextJudge
from .request import Names
from .samples import Carried, Samples
from .upscaling import need_low, own_guidance, planned, upscale

CASCADE_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A base and super-resolution stages, each an ordinary model with its own guidance, steps,
    solver and seeds.

    The base's pictures, with noise of a chosen level, are a condition of the next stage, and so on;
    class or prompt go to every stage. Sample k depends on seed k alone.

    Args:
        name: its name, or its folder.
        stages: the models by name, in order; the first makes pictures from nothing.
        card: the values of its ``cascade.json``.
        defaults: settings of stages, in the place of their own.

    Raises:
        ValueError: a stage does not fit the one before.

    References:
        Cascaded Diffusion Models, https://arxiv.org/abs/2106.15282
        Imagen, https://arxiv.org/abs/2205.11487
    """

    name: str
    stages: Mapping[str, Model]
    card: Card = field(default_factory=dict)
    defaults: Mapping[str, StageSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a cascade needs a base; give it stages by name")
        before: tuple[str, tuple[int, ...] | None] | None = None
        for name, model in self.stages.items():
            if before is not None:
                low = need_low(model)
                wanted = (low.channels, low.size, low.size)
                if before[1] != wanted:
                    made = list(before[1] or self.stages[before[0]].shape)
                    raise ValueError(
                        f"the stage {name!r} enlarges pictures of {list(wanted)}, but "
                        f"{before[0]!r} before it makes {made}; take stages that fit"
                    )
            before = (name, model.image_shape)

    @property
    def base(self) -> Model:
        """The model of the smallest pictures."""
        return next(iter(self.stages.values()))

    @property
    def last(self) -> Model:
        """The model of the largest pictures."""
        return list(self.stages.values())[-1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if it has any."""
        return self.base.classes

    @property
    def takes_prompts(self) -> bool:
        """Whether its condition is a prompt."""
        return self.base.takes_prompts

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture."""
        return self.last.shape

    @property
    def judge(self) -> Judge | TextJudge | None:
        """What measures its pictures, and guides nothing."""
        return self.last.judge

    def need_judge(self) -> Judge:
        """Return the judge; errors as of `Model.need_judge`."""
        return self.last.need_judge()

    def expression(self, guidance: str | Guidance | Direction | None) -> Guidance:
        """Read an expression."""
        return self.base.expression(guidance)

    def with_stages(self, stages: Mapping[str, StageSettings]) -> Cascade:
        """Return the cascade with other defaults of its stages."""
        found = replace(self, defaults={**self.defaults, **stages})
        found._settings(None, StageSettings())
        return found

    def _settings(
        self, stages: Mapping[str, StageSettings] | None, common: StageSettings
    ) -> dict[str, StageSettings]:
        """Return the settings of each stage: its own, or else those common to all.

        Raises:
            ValueError: a stage that is not there, or an augmentation of the base.
        """
        given = {**self.defaults, **(stages or {})}
        strange = [n for n in given if n not in self.stages]
        if strange:
            raise ValueError(
                f"{self.name!r} has no stage {strange[0]!r}; its stages are "
                f"{', '.join(self.stages)}"
            )
        first = next(iter(self.stages))
        if given.get(first, StageSettings()).augmentation is not None:
            raise ValueError(f"the base {first!r} enlarges nothing, so it has no augmentation")
        usual = asdict_shallow(common)
        found = {}
        for name in self.stages:
            own = asdict_shallow(given.get(name, StageSettings()))
            merged = {k: usual[k] if v is None else v for k, v in own.items()}
            if name == first:
                merged["augmentation"] = None
            found[name] = StageSettings(**merged)
        return found

    def sample(
        self,
        cond: Names | None = None,
        *,
        seeds: Sequence[int] = (0,),
        stages: Mapping[str, StageSettings] | None = None,
        guidance: str | Guidance | Direction | None = None,
        negative: str | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | None = None,
        augmentation: float | None = None,
        max_rows: int | None = None,
        watch: Watch | None = None,
    ) -> CascadeSamples:
        """Sample one picture a seed, through all stages.

        Args:
            cond: as in `Model.sample`, of every stage.
            seeds: one integer a sample.
            stages: settings of single stages, which go before the common ones that follow.
            guidance: of all stages; each one's own by default.
            negative: of all stages.
            steps: of all stages.
            solver: of all stages.
            grid: of all stages.
            augmentation: of all stages but the base; by default 0.1.
            max_rows: the most rows of one network call.
            watch: called after each step with the steps done and in all, of each stage anew.

        Raises:
            ValueError: as of `Model.sample` and `guidestar.upscale`.
        """
        seeds = checked_seeds(seeds)
        common = StageSettings(
            guidance=guidance,
            negative=negative,
            steps=steps,
            solver=solver,
            grid=grid,
            augmentation=augmentation,
        )
        chosen = self._settings(stages, common)
        done: dict[str, Samples] = {}
        images: Tensor | None = None
        for name, model in self.stages.items():
            s = chosen[name]
            own = list(s.seeds or [stage_seed(seed, name) for seed in seeds])
            if len(own) != len(seeds):
                raise ValueError(
                    f"the stage {name!r} has {len(own)} seeds for {len(seeds)} samples"
                )
            run = {"guidance": s.guidance, "seeds": own, "negative": s.negative, "steps": s.steps}
            run |= {"solver": s.solver, "grid": s.grid, "max_rows": max_rows, "watch": watch}
            if images is None:
                done[name] = model.sample(cond, **run)
            else:
                done[name] = upscale(model, images, cond, augmentation=s.augmentation, **run)
            images = done[name].images
        return CascadeSamples(stages=done, settings=self._carried(done, cond, seeds, chosen))

    def _carried(
        self,
        done: Mapping[str, Samples],
        cond: Names | None,
        seeds: Sequence[int],
        chosen: Mapping[str, StageSettings],
    ) -> JSONObject:
        stages = {
            name: {**asdict(s.settings), "augmentation": chosen[name].augmentation}
            for name, s in done.items()
        }
        for about in stages.values():  # the picture comes from the stage before
            about["lacking"] = [w for w in about["lacking"] if w != "the picture that was enlarged"]
        names = [cond] if isinstance(cond, str | int) else cond
        return {
            "cascade": self.name,
            "model": self.name,
            "cond": None if names is None else list(names),
            "seeds": list(seeds),
            "stages": stages,
        }

    def again(self, settings: Carried, watch: Watch | None = None) -> CascadeSamples:
        """Repeat the run that a picture carries.

        Raises:
            ValueError: the settings are not a cascade's, or it depended on what they lack.
        """
        stages = settings.get("stages")
        keys = {"guidance", "steps", "solver", "grid", "augmentation", "seeds", "negative"}
        if (
            not isinstance(stages, dict)
            or not {"seeds", "cond"} <= settings.keys()
            or not all(isinstance(s, dict) and keys <= s.keys() for s in stages.values())
        ):
            raise ValueError("the picture is not of a cascade; give one that a cascade sampled")
        lacking = next((s["lacking"] for s in stages.values() if s.get("lacking")), None)
        if lacking:
            raise ValueError(f"this run depended on {lacking[0]}, which the picture does not carry")
        wanted = {
            name: StageSettings(
                guidance=s["guidance"],
                steps=s["steps"],
                solver=s["solver"],
                grid=s["grid"],
                augmentation=s["augmentation"],
                seeds=tuple(s["seeds"]),
                negative=s["negative"],
            )
            for name, s in stages.items()
        }
        return self.sample(settings["cond"], seeds=settings["seeds"], stages=wanted, watch=watch)

    def plan(
        self,
        guidance: str | Guidance | Direction | None = None,
        *,
        cond: Names | None = 0,
        stages: Mapping[str, StageSettings] | None = None,
        negative: str | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | None = None,
    ) -> dict[str, Plan]:
        """Return the plan of each stage, by name, without running anything."""
        common = StageSettings(
            guidance=guidance, negative=negative, steps=steps, solver=solver, grid=grid
        )
        count = 1 if cond is None or isinstance(cond, str | int) else max(1, len(cond))
        found = {}
        for name, s in self._settings(stages, common).items():
            model = planned(self.stages[name], count)
            named = cond if self.base.encoder is not None else None
            found[name] = model.plan(
                own_guidance(model, s.guidance, named),
                cond=named,
                negative=s.negative,
                steps=s.steps,
                solver=s.solver,
                grid=s.grid,
            )
        return found

    def __repr__(self) -> str:
        lines = [f"  {n:<12} {list(m.shape)}" for n, m in self.stages.items()]
        return "\n".join([f"Cascade {self.name!r}", *lines])


def is_cascade(folder: Path | str) -> bool:
    """Tell whether a folder holds a cascade."""
    return (Path(folder) / NAME).is_file()


def load_cascade(
    folder: Path | str, *, trust: bool = False, device: torch.device | str = "cpu"
) -> Cascade:
    """Load a cascade's folder.

    Raises:
        WeightsError: a file is missing or damaged, or a stage does not fit the one before.
    """
    root = Path(folder)
    about = read_json(root / NAME)
    names = about.get("stages")
    if about.get("format") != CASCADE_FORMAT or not isinstance(names, list) or not names:
        raise WeightsError(
            f'{root / NAME}: must hold "format": {CASCADE_FORMAT} and "stages", a list of folders '
            "beside it"
        )
    try:
        folders = [check_name(n, f"{root / NAME}: a stage") for n in names]
        models = {n: load_model(root / n, trust=trust, device=device) for n in folders}
        return Cascade(name=str(folder), stages=models, card=about)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def write_cascade_index(folder: Path, stages: Sequence[str], about: Card) -> None:
    """Write the file that makes ``folder`` a cascade's, whose stages are folders in it."""
    content = {**about, "format": CASCADE_FORMAT, "stages": list(stages)}
    write_text(json.dumps(content, indent=2) + "\n", make_folder(folder) / NAME)
