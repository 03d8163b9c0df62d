"""Send a server whatever its own OpenAPI document allows and forbids: it must never fail.

    pip install schemathesis
    python benchmarks/serve_fuzz.py --seconds 300

A small model is served on a free port, and schemathesis makes requests of every route: valid ones,
and ones with wrong kinds, missing and unknown fields, odd numbers and texts. No answer may be a
server error. Afterwards the server must still make the picture that `Model.sample` makes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guidestar.io.images import to_pil
from guidestar.serve.web import Limits
from helpers.served import toy_model
from helpers.serving import PICTURE, pixels, serving

LIMITS = Limits(steps=8, samples=3, evaluations=2000, per_client=100_000, queue=100_000, kept=200)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    given = parser.parse_args()
    program = shutil.which("schemathesis")
    if program is None:
        print("schemathesis is missing; install it with: pip install schemathesis")
        return 1
    with serving(limits=LIMITS) as served:
        command = [program, "run", f"{served.url}/openapi.json", "-c", "not_a_server_error"]
        command += ["--phases", "examples,coverage,fuzzing", "--warnings", "off"]
        command += ["--max-time", str(given.seconds), "--continue-on-failure"]
        code = subprocess.run(command, check=False).returncode
        with served.client() as client:
            body = {"prompt": "cat", "seed": 3, "num_inference_steps": 4}
            answer = client.post("/v1/images/generations", json=body).json()
        wanted = to_pil(toy_model(shape=PICTURE).sample("cat", seeds=[3], steps=4).images)[0]
        if pixels(answer["data"][0]["b64_json"]) != pixels(wanted):
            print("the server makes another picture than before")
            return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
