"""What a LoRA is trained on and of what, by values by hand (`train/students/lora.py`)."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP
from guidestar.train.objectives.objective import TrainSettings
from guidestar.train.students import lora
from guidestar.train.students.lora import Adapted, LoRA, Prompts
from helpers.noting import noted

PROMPTS = ("a", "b", "c")


def spec(**more: Any) -> LoRA:
    given = {"teacher": "t", "guidance": "cfg(3)", "prompts": PROMPTS, "samples": 10, "steps": 5,
             "rank": 4, "seed": 100, "train": TrainSettings(steps=7, batch=2)}  # fmt: skip
    return LoRA(**{**given, **more})


class Model:
    """Gives each sample its prompt's place, and a thousandth of its seed."""

    def __init__(self):
        self.asked: list[Any] = []

    def request(self, prompts, **more):
        self.asked.append((prompts, more))
        return list(zip(prompts, more["seeds"], strict=True))

    def states(self, request):
        yield SimpleNamespace(x=torch.full((len(request), 1), torch.nan))
        rows = [[PROMPTS.index(p) + seed / 1000] for p, seed in request]
        yield SimpleNamespace(x=torch.tensor(rows).double())


def test_samples_of_a_teacher_take_the_prompts_in_turn():
    model: Any = Model()
    seen: list[Any] = []
    found = lora._samples(model, spec(), lambda *w: seen.append(w))
    turns = [i % 3 for i in range(10)]
    shared = {"guidance": "cfg(3)", "steps": 5}
    assert model.asked == [
        ([PROMPTS[i] for i in turns[:8]], {"seeds": list(range(100, 108)), **shared}),
        ([PROMPTS[i] for i in turns[8:]], {"seeds": [108, 109], **shared}),
    ]
    assert seen == [(8, 10), (10, 10)]
    assert found.targets["prompt"].tolist() == turns  # type: ignore[union-attr]
    expected = [turns[i] + (100 + i) / 1000 for i in range(10)]
    assert found.x[:, 0].tolist() == pytest.approx(expected) and found.x.dtype == torch.float32
    column = found.columns["prompt"]
    assert (column.kind, column.classes) == ("class", ("0", "1", "2"))
    assert len(lora._samples(Model(), spec(samples=8), None).x) == 8  # type: ignore[arg-type]


def test_what_a_loras_weights_are_made_of():
    assert lora._made_from(spec(), "digest") == {
        "guidance": "cfg(3)",
        "prompts": ["a", "b", "c"],
        "rank": 4,
        "samples": 10,
        "sampling steps": 5,
        "seed of the samples": 100,
        "pipeline (its weights)": "digest",
    }
    usual = LoRA(teacher="t", guidance="cfg(3)", prompts=("a",), train=TrainSettings(steps=1))
    assert (usual.rank, usual.samples, usual.steps, usual.seed) == (16, 64, None, 0)


def test_networks_that_take_no_lora_are_refused(monkeypatch):
    from guidestar.diffusers import export

    model: Any = SimpleNamespace(denoiser="denoiser")
    for more, line in [
        ({"config": {"guidance_embeds": True}}, "p: its network takes the guidance scale as an"),
        ({"config": {}}, "p: its network is a SimpleNamespace, which takes no LoRA"),
        ({}, "p: its network is a SimpleNamespace, which takes no LoRA"),
    ]:
        noted(monkeypatch, export, "network_of", SimpleNamespace(**more))
        with pytest.raises(ValueError, match=line):
            lora._network_of(model, "p")
    for config in ({}, {"guidance_embeds": False}, {"guidance_embeds": None}):
        net = SimpleNamespace(config=config, add_adapter=print)
        asked = noted(monkeypatch, export, "network_of", net)
        assert lora._network_of(model, "p") is net and asked == [(("denoiser",), {})]


class Encoder:
    def encode(self, prompts):
        return Condition(c=torch.tensor([[ord(p) - 96.0] for p in prompts]))

    def null(self, count):
        return Condition(c=torch.full((count, 1), -1.0))


def test_prompts_are_rows_and_the_null_is_the_last():
    model: Any = SimpleNamespace(name="m", encoder=Encoder())
    table = Prompts(model, PROMPTS)
    assert table({"prompt": torch.tensor([2, 3, 0])})["c"].tolist() == [[3.0], [-1.0], [1.0]]
    assert int(table.null_rows("prompt")) == 3 and table.null(2)["c"].tolist() == [[-1.0], [-1.0]]
    assert list(table.parts) == ["prompt"] and not table.state_dict()
    for encoder in (None, SimpleNamespace(null=lambda count: None)):
        model.encoder = encoder
        with pytest.raises(ValueError, match="'m' takes no condition, so it has no guidance"):
            Prompts(model, PROMPTS)


class Net(nn.Module):
    """Of two layers that are adapted, one that is not, and no layer whose name fits."""

    def __init__(self):
        super().__init__()
        self.to_q, self.proj_in, self.other = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.to_k = nn.Conv1d(2, 2, 1)
        self.asked: list[Any] = []
        self.on = True

    def add_adapter(self, config):
        self.asked.append(config)
        self.to_q.register_parameter("lora_A", nn.Parameter(torch.zeros(1)))

    def disable_adapters(self):
        self.on = False

    def enable_adapters(self):
        self.on = True


def test_linear_layers_of_attention_are_adapted_alone():
    net, encoder, denoiser = Net(), SimpleNamespace(), nn.Identity()
    made = Adapted(denoiser, encoder, net, 4)  # type: ignore[arg-type]
    (config,) = net.asked
    assert set(config.target_modules) == {"to_q", "proj_in"}
    assert (config.r, config.lora_alpha) == (4, 4)
    assert [n for n, _ in made.named_parameters()] == ["adapter.to_q/lora_A"]
    assert not net.other.weight.requires_grad and not net.to_q.weight.requires_grad
    assert (made.denoiser, made.encoder, made.network) == (denoiser, encoder, net)
    with made.off():
        assert not net.on
    assert net.on
    with pytest.raises(KeyError), made.off():
        raise KeyError
    assert net.on
    with pytest.raises(ValueError, match="Identity has no linear layers of attention that a LoRA"):
        Adapted(denoiser, encoder, nn.Identity(), 4)  # type: ignore[arg-type]


@pytest.fixture
def ready(monkeypatch):
    """Put notes in the place of all that a training of a LoRA does."""
    model = SimpleNamespace(denoiser="denoiser", schedule=VP.linear())
    told = SimpleNamespace(model=model, applied=[], closed=[])

    @contextmanager
    def applied(student):
        told.applied.append(student)
        yield

    class Student:
        def __init__(self, *given):
            self.given, self.off = given, nullcontext

    class Asked(SimpleNamespace):
        def check(self):
            told.checked = self

    def fit(*given, **more):
        told.fit = given, more
        try:
            yield "one"
            yield "two"
        finally:
            told.closed.append(True)

    noted(monkeypatch, lora, "locked", nullcontext())
    told.loaded = noted(monkeypatch, lora, "load", model)
    told.nets = noted(monkeypatch, lora, "_network_of", nn.Linear(1, 1))
    told.prompts = noted(monkeypatch, lora, "Prompts", "encoder")
    told.samples = noted(monkeypatch, lora, "_samples", "data")
    noted(monkeypatch, lora, "of_tensors", "digest")
    monkeypatch.setattr(lora, "Adapted", Student)
    monkeypatch.setattr(lora, "Teacher", Asked)
    monkeypatch.setattr(lora, "GuidedDistillation", SimpleNamespace)
    noted(monkeypatch, lora, "weighting", "weighting")
    told.trainer = SimpleNamespace(ema=SimpleNamespace(applied=applied))
    told.trainers = noted(monkeypatch, lora, "Trainer", told.trainer)
    monkeypatch.setattr(lora, "fit", fit)
    told.written = noted(monkeypatch, lora, "write_lora", "file")
    return told


def test_a_lora_is_trained_with_all_that_it_has(ready, tmp_path):
    known, heard = spec(), []
    stop: Any = SimpleNamespace(agreed=False)
    watch: Any = object()
    found = lora.distil_lora(
        known, tmp_path / "o", lambda *w: heard.append(w), stop=stop, watch=watch
    )
    assert found == "file" and ready.loaded == [(("t",), {})]
    assert ready.nets == [((ready.model, "t"), {})]
    assert ready.prompts == [((ready.model, PROMPTS), {})]
    assert ready.samples == [((ready.model, known, watch), {})]
    ((student, objective, data, train, made), more) = ready.trainers[0]
    assert student.given[0] == "denoiser" and student.given[1] == "encoder"
    assert isinstance(student.given[2], nn.Linear) and student.given[3] == 4
    teacher = objective.teacher
    assert teacher is ready.checked and teacher.context is student.off
    assert (teacher.denoiser, teacher.encoder, teacher.guidance) == (
        "denoiser", "encoder", "cfg(3)"
    )  # fmt: skip
    assert teacher.schedule is ready.model.schedule
    assert (objective.levels.mean, objective.levels.std) == (0.0, 1.5)
    assert (objective.weighting, objective.dropout) == ("weighting", 0.0)
    assert (data, train) == ("data", known.train)
    assert made == lora._made_from(known, "digest")
    assert more["prepare"]({"prompt": "rows", "x": 1}) == {"rows": {"prompt": "rows"}}
    assert ready.fit == ((ready.trainer, tmp_path / "o" / "parts" / "lora.pt"), {"stop": stop})
    assert heard == [("lora", "one", 7), ("lora", "two", 7)] and ready.closed == [True]
    assert ready.applied == [student] and ready.written == [((student, "t", tmp_path / "o"), {})]
    assert lora.distil_lora(known, tmp_path / "o") == "file"  # nobody is told


def test_a_lora_begins_with_random_factors_of_its_seed(ready, monkeypatch, tmp_path):
    drawn: list[float] = []

    def adapted(*given):
        drawn.append(float(torch.rand(())))
        return SimpleNamespace(off=nullcontext)

    monkeypatch.setattr(lora, "Adapted", adapted)
    lora.distil_lora(spec(seed=31), tmp_path)
    torch.manual_seed(31)
    assert drawn == [float(torch.rand(()))]


def test_a_lora_that_is_stopped_is_not_written(ready, tmp_path):
    stop: Any = SimpleNamespace(agreed=True)
    assert lora.distil_lora(spec(), tmp_path, stop=stop) is None
    assert not ready.written and not ready.applied


@pytest.mark.parametrize(
    ("name", "part"), [("UNet2DConditionModel", "unet"), ("SD3Transformer2DModel", "transformer")]
)
def test_a_lora_is_written_by_the_class_of_its_pipeline(monkeypatch, tmp_path, name, part):
    import peft

    import diffusers

    calls: list[Any] = []
    kind = type("P", (), {"save_lora_weights": lambda *given, **more: calls.append((given, more))})
    monkeypatch.setattr(diffusers, "Known", kind, raising=False)
    weights = noted(monkeypatch, peft, "get_peft_model_state_dict", "weights")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Known"}')
    net = type(name, (), {})()
    student: Any = SimpleNamespace(network=net)
    file = lora.write_lora(student, str(tmp_path), tmp_path / "o")
    assert file == tmp_path / "o" / "pytorch_lora_weights.safetensors"
    assert calls == [((tmp_path / "o",), {f"{part}_lora_layers": "weights"})]
    assert weights == [((net,), {})]
    (tmp_path / "model_index.json").write_text('{"_class_name": "Unknown"}')
    with pytest.raises(ValueError, match=r": a Unknown loads no LoRA in Diffusers"):
        lora.write_lora(student, str(tmp_path), tmp_path / "o")
    with pytest.raises(ValueError, match=r"nowhere: a None loads no LoRA in Diffusers"):
        lora.write_lora(student, "nowhere", tmp_path / "o")
