"""Set-up of all tests: the shapes in public signatures are checked while they run."""

from jaxtyping import install_import_hook

_HOOK = install_import_hook("guidestar.prediction", "beartype.beartype")
