"""``python -m guidestar``."""

from .cli import main

main()
