"""Every command and example of `docs/serve.md` and `docs/studio.md` runs as it is printed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import guidestar as gs
from guidestar.cli import main
from guidestar.model.shipped import SHIPPED
from guidestar.serve import web
from guidestar.serve.studio import mount
from guidestar.serve.web import Limits
from helpers.serving import serving

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("serve.md", "studio.md"))


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every printed `guidestar serve` and `guidestar studio`, without its comment."""
    lines = [line.partition("  #")[0] for block in blocks("sh") for line in block.splitlines()]
    inline = re.findall(r"`(guidestar (?:serve|studio) [a-z][^`…]*)`", TEXT)
    found = [c.strip() for c in [*lines, *inline] if re.match(r"guidestar (serve|studio) ", c)]
    return list(dict.fromkeys(found))


def test_there_are_commands_to_check():
    assert len(commands()) >= 6 and any("--ray" in c for c in commands())


@pytest.mark.parametrize("command", commands())
def test_a_printed_command_serves(command, monkeypatch, tmp_path):
    """All but the listening itself, and Ray's processes: `test_ray.py` starts those."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shop").symlink_to(SHIPPED / "fashion-mnist")
    monkeypatch.chdir(tmp_path)
    served: list[Any] = []

    def note(app, service, **more):
        served.append((service, more))
        service.close()
        return 0

    class Cluster:
        def __init__(self, folders, limits, *, scale, **more):
            self.scale = scale

        def engine(self, model, limits):
            return web.service.start_engine(model, limits)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(web, "run_server", note)
    monkeypatch.setattr("guidestar.cli.serving._cluster", lambda: Cluster)
    program, *arguments = shlex.split(command)
    mounted: list[Any] = []  # `test_studio_page.py` clicks through the page itself
    monkeypatch.setattr(mount, "mount_studio", lambda app, service: mounted.append(service))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert program == "guidestar" and ended.value.code in (0, None)
    ((service, more),) = served
    assert next(iter(service.engines)) == arguments[1].partition("=")[0]
    assert mounted == [service] * ("studio" in command)
    assert more["port"] == (9000 if "--port 9000" in command else 8000)


def test_the_examples_of_clients_work_as_printed():
    pytest.importorskip("openai")
    (python,) = [b for b in blocks("py") if "OpenAI" in b]
    (curl,) = [b for b in blocks("sh") if b.startswith("curl")]
    answers: list[Any] = []
    with serving({"fashion-mnist": gs.load("fashion-mnist")}, Limits()) as served:
        local = python.replace("http://localhost:8000", served.url)
        assert local != python
        scope: dict[str, Any] = {}
        exec(
            compile(local.replace("client.images", "answer = client.images"), "docs", "exec"), scope
        )
        assert len(scope["answer"].data) == 2 and scope["answer"].seeds == [7, 8]
        body = json.loads(re.findall(r"-d '(.*)'", curl, re.DOTALL)[0])
        with served.client() as client:
            answers.append(client.post("/v1/samples", json=body))
            assert answers[0].status_code == 202 and answers[0].json()["seeds"] == [7, 8, 9, 10]
            for route in set(re.findall(r"`(?:GET )?(/[a-z0-9/]+)`", TEXT)):
                if route.startswith(("/v1/m", "/healthz", "/readyz", "/metrics")):
                    assert client.get(route).status_code == 200, route


def test_the_example_of_the_library_works_as_printed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (python,) = [b for b in blocks("python") if "Engine" in b]
    exec(compile(python, "docs/serve.md", "exec"), {})
    assert len(list((tmp_path / "out/bag").glob("*.png"))) == 1


def test_printed_limits_are_the_defaults():
    found = Limits()
    text = " ".join(TEXT.split())
    for printed in (
        f"bodies of {found.body // 10**6} MB, {found.samples} samples and {found.steps} steps a",
        f"{found.evaluations:,} evaluations of the network, scales up to {found.scale:g}",
        f"{found.per_client} requests a client, {found.queue} that wait, {found.seconds:g} seconds",
    ):
        assert printed in text
