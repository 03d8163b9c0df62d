"""What Ray is asked for, and what is made of its answers; `test_ray` runs the real one.

Developers do not install Ray, so a recorder stands in its place here.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from guidestar.serve.replicas import ReplicaLostError, ReplicaScale, cluster
from guidestar.serve.replicas.replica import Replica
from guidestar.serve.web import Limits
from helpers.served import toy_model


class RayError(Exception):
    """As Ray's of that name: something is wrong with a process."""


class RayTaskError(RayError):
    """As Ray's of that name: the code raised."""


class RayServeException(Exception):
    """As Ray Serve's of that name."""


class Ray(ModuleType):
    """Notes what is asked of Ray and Ray Serve.

    Args:
        failures: how often `init` fails.
    """

    def __init__(self) -> None:
        super().__init__("ray")
        self.failures, self.asked = 0, []
        self.alive: list[dict[str, Any]] = []
        self.states: dict[str, int] = {}
        self.broken = False

    def note(self, name: str, answer: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            return answer

        return call

    def init(self, address: str, **options: Any) -> None:
        self.asked.append(("init", (address,), options))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("too slow")

    def shutdown(self) -> None:
        self.asked.append(("shutdown", (), {}))

    def nodes(self) -> list[dict[str, Any]]:
        return self.alive

    def status(self) -> Any:
        if self.broken:
            raise RuntimeError("the controller is down")
        found = SimpleNamespace(replica_states=self.states)
        deployments = {"replica": found, "other": SimpleNamespace(replica_states={"RUNNING": 99})}
        return SimpleNamespace(applications=Applications(deployments))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.asked if called == name]


class Applications(dict[str, Any]):
    """Each name has the same deployments."""

    def __init__(self, deployments: dict[str, Any]) -> None:
        super().__init__()
        self.deployments = deployments

    def __missing__(self, name: str) -> Any:
        assert name.startswith("guidestar-")
        return SimpleNamespace(deployments=self.deployments)


@pytest.fixture
def ray(monkeypatch):
    made: Any = Ray()
    bound = SimpleNamespace(bind=made.note("bind", "application"))
    serve: Any = ModuleType("ray.serve")
    serve.deployment, serve.run = made.note("deployment", bound), made.note("run", "handle")
    serve.start, serve.delete = made.note("start"), made.note("delete")
    serve.status = made.status
    errors: Any = ModuleType("ray.exceptions")
    errors.RayError, errors.RayTaskError = RayError, RayTaskError
    of_serve: Any = ModuleType("ray.serve.exceptions")
    of_serve.RayServeException = RayServeException
    made.serve = serve
    for module in (made, serve, errors, of_serve):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    levels = {name: logging.getLogger(name).level for name in ("ray", "ray.serve")}
    yield made
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@pytest.mark.parametrize(
    ("cores", "most", "cpus"), [(8, 2, 8), (2, 5, 5), (None, 3, 3), (None, 0, 1)]
)
def test_ray_is_started_here_with_a_core_for_every_replica(ray, monkeypatch, cores, most, cpus):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    cluster._connect(None, most)
    assert ray.asked == [
        ("init", ("local",), {**QUIET, "num_cpus": cpus, "include_dashboard": False}),
        ("start", (), {"proxy_location": "Disabled"}),
    ]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert [logging.getLogger(n).level for n in ("ray", "ray.serve")] == [logging.ERROR] * 2


def test_a_cluster_that_runs_is_joined_as_it_is(ray, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")  # the user's own choice
    cluster._connect("host:1", 2)
    assert ray.of("init") == [(("host:1",), QUIET)]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_ray_is_started_up_to_three_times(ray, failures):
    ray.failures = failures
    cluster._connect(None, 1)
    assert [name for name, *_ in ray.asked] == [*["init", "shutdown"] * failures, "init", "start"]


@pytest.mark.parametrize(
    ("address", "times", "line"),
    [(None, 3, "cannot start Ray here: too slow"),
     ("h:1", 1, "cannot join the Ray cluster at h:1: too slow")],
)  # fmt: skip
def test_a_cluster_that_does_not_start(ray, address, times, line):
    ray.failures = 9
    with pytest.raises(RuntimeError, match=line):
        cluster._connect(address, 1)
    assert [name for name, *_ in ray.asked] == ["init", "shutdown"] * times


@pytest.mark.parametrize(
    ("nodes", "most", "share"),
    [
        ([8], 2, 4.0),
        ([8], 3, 2.0),  # whole cores
        ([2], 5, 1.0),  # at least one each
        ([8, 2], 2, 2.0),  # no more than the least node has
        ([8, 0], 2, 4.0),  # a node without cores takes no replica
        ([], 2, 1.0),
        ([None], 1, 1.0),
    ],
)
def test_each_replica_has_its_share_of_the_cores(ray, nodes, most, share):
    resources = [{} if n is None else {"CPU": n} for n in nodes]
    ray.alive = [{"Alive": True, "Resources": r} for r in resources]
    ray.alive.append({"Alive": False, "Resources": {"CPU": 100}})
    assert cluster._resources(most, "cpu") == {"num_cpus": share, "num_gpus": 0.0}
    for device in ("cuda", "cuda:1"):
        assert cluster._resources(most, device) == {"num_cpus": share, "num_gpus": 1.0}


def test_how_many_replicas_ray_keeps():
    assert cluster._options(ReplicaScale(least=3, most=3)) == {"num_replicas": 3}
    assert cluster._options(ReplicaScale(least=1, most=3, target=7)) == {
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": 3,
            "target_ongoing_requests": 7,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 60.0,
        }
    }


def wait_until(found) -> None:
    for _ in range(400):
        if found():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def test_a_cluster_deploys_counts_and_ends(ray, monkeypatch):
    monkeypatch.setattr(cluster, "COUNT_SECONDS", 0.001)
    connected: list[Any] = []
    monkeypatch.setattr(cluster, "_connect", lambda *given: connected.append(given))
    ray.alive = [{"Alive": True, "Resources": {"CPU": 6}}]
    limits = Limits(rows=5, queue=6, samples=7, evaluations=888, seconds=9.5)
    ray.states = {"RUNNING": 2, "STARTING": 4}
    scale = ReplicaScale(least=2, most=3, target=4)
    with cluster.Cluster({"m": "f"}, limits, scale=scale, device="cuda", trust=True,
                         address="h:1") as made:  # fmt: skip
        assert connected == [("h:1", 3)]
        (((kind,), options),) = ray.of("deployment")
        assert kind is Replica and options == {
            "name": "replica",
            "max_ongoing_requests": 5,
            "ray_actor_options": {"num_cpus": 2.0, "num_gpus": 1.0},
            "graceful_shutdown_wait_loop_s": 0.5,
            "graceful_shutdown_timeout_s": 9.5,
            "health_check_period_s": 5,
            "autoscaling_config": {
                "min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 4,
                "upscale_delay_s": 5.0, "downscale_delay_s": 60.0,
            },
        }  # fmt: skip
        (((load, rows), _),) = ray.of("bind")
        assert rows == 5 and load.func is cluster.load_models
        assert load.args == ({"m": "f"},) and load.keywords == {"device": "cuda", "trust": True}
        ((given, options),) = ray.of("run")
        assert given == ("application",) and options == {"name": made._name, "route_prefix": None}
        mine = [t for t in threading.enumerate() if t.name == "guidestar-cluster"]
        assert len(mine) == 2 and all(t.daemon for t in mine)  # a process ends in spite of them
        engine = made.engine(toy_model(), limits)
        replicas: Any = engine._replicas
        wait_until(lambda: replicas() == 2)
        ray.broken = True  # what was counted last stays
        time.sleep(0.01)
        ray.states = {"RUNNING": 1}
        time.sleep(0.01)
        assert replicas() == 2
        ray.broken = False
        wait_until(lambda: replicas() == 1)
        ray.states = {}
        wait_until(lambda: replicas() == 0)
        assert not ray.of("delete") and made._loop.is_running()
        engine.close()
    assert ray.of("delete") == [((made._name,), {})] and ray.asked[-1][0] == "shutdown"
    wait_until(made._loop.is_closed)
    other = cluster.Cluster({}, limits, scale=scale)
    assert other._name != made._name and connected[1] == (None, 3)
    assert ray.of("bind")[1][0][0].keywords == {"device": "cpu", "trust": False}
    ray.serve.delete = lambda name: 1 / 0
    before = len(ray.of("shutdown"))
    with pytest.raises(ZeroDivisionError):
        other.close()
    assert len(ray.of("shutdown")) == before + 1
    wait_until(other._loop.is_closed)


def test_the_engine_of_a_cluster_keeps_the_limits(ray, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(cluster, "ReplicatedEngine", lambda *a, **k: made.append((a, k)))
    whole: Any = SimpleNamespace(_handle="handle", _loop="loop", _running=3)
    limits = Limits(rows=5, queue=6, samples=7, evaluations=888)
    model = toy_model()
    cluster.Cluster.engine(whole, model, limits)
    (((given, send, loop), options),) = made
    assert given is model and loop == "loop"
    assert send.func is cluster._sample and send.args == ("handle", "toy")
    assert options.pop("replicas")() == 3
    assert options == {"max_rows": 5, "max_queue": 6, "max_samples": 7, "max_evaluations": 888}


class Handle:
    """A deployment's handle, whose stream has two reports and then ends in an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked, self.cancelled = error, [], 0
        self.sample = SimpleNamespace(remote=self.remote)

    def options(self, **options: Any):
        self.asked.append(options)
        return self

    def remote(self, *args: Any, **kwargs: Any):
        self.asked.append((args, kwargs))
        return self

    async def __aiter__(self):
        yield "one"
        yield "two"
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled += 1


def reports_of(handle: Any) -> list[Any]:
    async def collect() -> list[Any]:
        sent = cluster._sample(handle, "m", "request", preview_every=3, explain=True)  # type: ignore[arg-type]
        found: list[Any] = []
        try:
            async for report in sent:
                found.append(report)
        except Exception as error:
            found.append(error)
        return found

    return asyncio.run(collect())


def test_reports_are_streamed_and_the_stream_is_ended(ray):
    handle = Handle()
    assert reports_of(handle) == ["one", "two"] and handle.cancelled == 1
    sent = (("m", "request"), {"preview_every": 3, "explain": True})
    assert handle.asked == [{"stream": True}, sent]


@pytest.mark.parametrize("error", [RayError("gone"), RayServeException("gone")])
def test_a_lost_replica_is_named_as_such(ray, caplog, error):
    handle = Handle(error)
    with caplog.at_level(logging.WARNING, "guidestar.serve"):
        *reports, last = reports_of(handle)
    assert reports == ["one", "two"] and handle.cancelled == 1
    assert isinstance(last, ReplicaLostError) and str(last) == type(error).__name__
    assert [r.getMessage() for r in caplog.records] == [
        "a replica was lost; its requests are sampled by another"
    ]


def test_a_fault_of_the_code_is_no_lost_replica(ray):
    error = RayTaskError("x")
    handle = Handle(error)
    assert reports_of(handle)[-1] is error and handle.cancelled == 1
