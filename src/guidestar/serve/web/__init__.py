"""The server over HTTP: its own API, and those of OpenAI and A1111."""

from .app import make_app
from .keys import Keys, read_keys
from .limits import Limits
from .run import run_server
from .service import Service

__all__ = ["Keys", "Limits", "Service", "make_app", "read_keys", "run_server"]
