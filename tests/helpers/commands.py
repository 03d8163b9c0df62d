"""Run commands of guidestar one after the other in one process: ``python commands.py`` followed by
a list of commands in JSON, each a list of arguments. What fails ends it.
"""

import json
import sys

from guidestar import cli
from guidestar.io.distributed import leave


def main(commands: str) -> None:
    for command in json.loads(commands):
        try:
            cli.main(command)
        except SystemExit as stop:
            if stop.code:
                raise
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
