"""Time text models from a prompt to pictures: from a cold start, and warm.

    python benchmarks/text_speed.py emoji [FOLDER …]

Cold: seconds of `guidestar sample MODEL "red heart, flat style" --num 4`, a new process each time.
Warm: seconds of one picture at 20 steps in this process. Both are medians; models take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import guidestar as gs

PROMPT = "red heart, flat style"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["emoji"])
    parser.add_argument("--cold", type=int, default=3, help="cold starts of each")
    parser.add_argument("--warm", type=int, default=9, help="warm pictures of each")
    arguments = parser.parse_args()
    cold: dict[str, list[float]] = {name: [] for name in arguments.models}
    warm: dict[str, list[float]] = {name: [] for name in arguments.models}
    for _ in range(arguments.cold):
        for name in arguments.models:
            cold[name].append(seconds_cold(name))
    models = {name: gs.load(name) for name in arguments.models}
    for model in models.values():
        model.sample(PROMPT, seeds=[0], steps=2)
    for seed in range(arguments.warm):
        for name, model in models.items():
            start = time.perf_counter()
            model.sample(PROMPT, seeds=[seed], steps=20)
            warm[name].append(time.perf_counter() - start)
    print(f"{'model':40}{'four pictures, cold':>22}{'one picture, warm':>20}")
    for name in arguments.models:
        took = (statistics.median(cold[name]), statistics.median(warm[name]))
        print(f"{name[-40:]:40}{took[0]:>20.2f} s{took[1]:>18.3f} s")


def seconds_cold(name: str) -> float:
    """Return the seconds of a command that draws four pictures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "guidestar", "sample", name, PROMPT, "--num", "4"]
        start = time.perf_counter()
        subprocess.run([*command, "--out", folder], check=True, capture_output=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
