"""The commands that serve models over HTTP, with a page in the browser or without."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ._completion import model_names
from ._options import Trust

if TYPE_CHECKING:
    from ..serve.replicas.cluster import Cluster
    from ..serve.web import Limits

LIMITS = {
    "body": "Bytes of a request's body.",
    "prompt": "Characters of a prompt or an expression.",
    "pixels": "Pixels of a picture that is sent.",
    "samples": "Samples of a request.",
    "steps": "Steps of a request.",
    "scale": "The largest scale of a term.",
    "evaluations": "Network evaluations of a request.",
    "rows": "Rows that are evaluated together, of each model.",
    "queue": "Requests that wait, of each model.",
    "per-client": "Requests of a client that are not over.",
    "seconds": "Seconds that a request may take.",
    "receive": "Seconds in which a body must arrive.",
    "kept": "Requests whose pictures are kept.",
    "keep": "Seconds for which pictures are kept.",
}
"""What --limit may name."""

_LIMIT_HELP = "NAME=NUMBER, several times for several: " + "; ".join(
    f"{name}: {text.rstrip('.').lower()}" for name, text in LIMITS.items()
)


Models = Annotated[
    list[str],
    typer.Argument(
        help="Shipped models or folders, MODEL:VARIANT for a variant; NAME=FOLDER serves a folder "
        "under a name.",
        autocompletion=model_names,
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")]
KeyFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--keys", help="A file of API keys, one a line; needed for other than loopback."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Serve other machines without keys.")]
Device = Annotated[str | None, typer.Option(help="Where the networks are: cpu, cuda, cuda:1, mps.")]
Grace = Annotated[
    float, typer.Option(min=0, help="Seconds that requests have, once it is to stop.")
]
LimitOption = Annotated[list[str] | None, typer.Option("--limit", help=_LIMIT_HELP)]
OnRay = Annotated[
    bool,
    typer.Option("--ray", help="Sample in replicas on Ray Serve (guidestar[ray])."),
]
Replicas = Annotated[
    str | None,
    typer.Option(help="With --ray: how many, or a range that follows the queue, e.g. 2 or 1-4."),
]
PerReplica = Annotated[
    int | None,
    typer.Option(help="Of a range: requests a replica above which one is added (16)."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster to join, e.g. auto; by default one is started here."),
]
AccessLog = Annotated[
    bool, typer.Option("--access-log", help="Log requests, without what they ask for.")
]


def serve(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    studio: Annotated[
        bool, typer.Option("--studio", help="Also serve the page in the browser, under /studio.")
    ] = False,
    keys: KeyFile = None,
    insecure: Insecure = False,
    device: Device = None,
    grace: Grace = 30.0,
    limit: LimitOption = None,
    access_log: AccessLog = False,
    trust: Trust = False,
    on_ray: OnRay = False,
    replicas: Replicas = None,
    per_replica: PerReplica = None,
    ray_address: RayAddress = None,
) -> None:
    """Serve models over HTTP: OpenAI's API for images, A1111's, and one of its own."""
    from ..serve.loading import load_models
    from ..serve.replicas import read_scale
    from ..serve.web import Keys, Service, make_app, read_keys, run_server
    from ..serve.web.run import is_loopback

    if not on_ray and (replicas, per_replica, ray_address) != (None, None, None):
        raise ValueError("--replicas, --per-replica and --ray-address go with --ray; add it")
    limits = read_limits(limit or [])
    accepted = read_keys(keys) if keys else Keys()
    local = is_loopback(host)
    if not local and not accepted and not insecure:
        raise ValueError(
            f"{host} can be reached from other machines: name a file of API keys with --keys, or "
            "let everyone in with --insecure"
        )
    folders = _folders(models)
    _log(access_log)
    scale = read_scale(replicas or "1", 16 if per_replica is None else per_replica)
    options = {"device": device or "cpu", "trust": trust}
    with ExitStack() as ending:
        start = None
        if on_ray:
            cluster = _cluster()(folders, limits, scale=scale, address=ray_address, **options)
            start = ending.enter_context(cluster).engine
            options["device"] = "cpu"  # here requests are only checked
        service = Service(load_models(folders, **options), limits, start)
        hosts = {"localhost", "127.0.0.1", "[::1]", host} if local else None
        app = make_app(service, keys=accepted, hosts=hosts, studio=studio)
        code = run_server(app, service, host=host, port=port, grace=grace)
    raise typer.Exit(code)


def studio(
    models: Models,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: KeyFile = None,
    insecure: Insecure = False,
    device: Device = None,
    grace: Grace = 5.0,
    limit: LimitOption = None,
    access_log: AccessLog = False,
    trust: Trust = False,
) -> None:
    """Serve models with a page in the browser: build, compare and explain guidances."""
    serve(
        models,
        host=host,
        port=port,
        studio=True,
        keys=keys,
        insecure=insecure,
        device=device,
        grace=grace,
        limit=limit,
        access_log=access_log,
        trust=trust,
    )


def read_limits(given: list[str]) -> Limits:
    """Return the limits, with those that are given in place of the usual ones.

    Raises:
        ValueError: an unknown limit, or no number above 0.
    """
    from ..serve.web import Limits

    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in LIMITS:
            raise ValueError(f"unknown limit {name!r}; the limits are {', '.join(LIMITS)}")
        kind = type(getattr(Limits(), name.replace("-", "_")))
        try:
            number = kind(value)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            raise ValueError(f"the limit {name} must be a {kind.__name__} above 0, not {value!r}")
        found[name.replace("-", "_")] = number
    return Limits(**found)


def _folders(names: list[str]) -> dict[str, str]:
    """Return the folders of models, by the names under which they are served."""
    from ..model.shipped import available

    folders: dict[str, str] = {}
    for text in names:
        name, _, folder = text.partition("=") if text not in available() else (text, "", "")
        name = name if folder else Path(text).name
        if name in folders:
            raise ValueError(f"two models are called {name!r}; write NAME=FOLDER")
        found = folder or text
        folders[name] = found if found in available() else _absolute(found)
    return folders


def _absolute(text: str) -> str:
    """Return the absolute path of a folder, or of a folder and a variant of its model: replicas
    have another working directory. What is neither stays as it is.
    """
    if Path(text).is_dir():
        return str(Path(text).resolve())
    folder, sign, variant = text.rpartition(":")
    return f"{Path(folder).resolve()}:{variant}" if sign and Path(folder).is_dir() else text


def _cluster() -> type[Cluster]:
    """Return what runs replicas on Ray Serve.

    Raises:
        RuntimeError: Ray is not installed.
    """
    from ..serve.replicas.cluster import Cluster

    try:
        import ray  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise RuntimeError(
            "--ray needs Ray Serve; install it with: pip install 'guidestar[ray]'"
        ) from None
    return Cluster


def _log(access: bool) -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("guidestar.access").setLevel(logging.INFO if access else logging.WARNING)
