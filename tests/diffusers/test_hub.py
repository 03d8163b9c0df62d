"""Models by their name on the Hugging Face hub: from a server of our own, and without any."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import guidestar as gs
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from guidestar.diffusers.read.hub import repository_of, wanted
from guidestar.diffusers.read.safetensors_io import encoder_settings
from guidestar.diffusers.read.text_models import read_text_model
from guidestar.diffusers.read.weights_files import conversion
from guidestar.model.folder import WeightsError
from guidestar.model.shipped import SHIPPED
from helpers.pipeline_folders import t5_text

SHA = "a" * 40
NAMES = "owner/small", "owner/pickled"


def small():
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return UNet2DModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
        **blocks,
    )


@pytest.fixture
def hub(tmp_path):
    """Serve repositories as the hub does: their list of files, and each file by name."""
    pipe = DDIMPipeline(small(), DDIMScheduler())
    pipe.save_pretrained(tmp_path / "hub" / "owner/small")
    (tmp_path / "hub" / "owner/small/unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "hub" / "owner/pickled/unet").mkdir(parents=True)
    (tmp_path / "hub" / "owner/pickled/unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    served = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            for name in NAMES:
                root = tmp_path / "hub" / name
                if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                    files = sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
                    return self.say(
                        json.dumps(
                            {"id": name, "sha": SHA, "siblings": [{"rfilename": f} for f in files]}
                        ).encode()
                    )
                if path.startswith(f"/api/models/{name}/tree/"):
                    files = [
                        {
                            "type": "file",
                            "path": str(f.relative_to(root)),
                            "size": f.stat().st_size,
                            "oid": "0",
                        }
                        for f in root.rglob("*")
                        if f.is_file()
                    ]
                    return self.say(json.dumps(files).encode())
                if path.startswith((f"/{name}/resolve/{SHA}/", f"/{name}/resolve/main/")):
                    file = root / path.split("/", 5)[5]
                    served.append((self.command, f"{name}/{file.relative_to(root)}"))
                    return self.say(file.read_bytes(), file)
            return self.say(b"{}", status=404, error="RepoNotFound")

        do_HEAD = do_GET

        def say(self, body, file=None, status=200, error=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", SHA)
            if file:
                self.send_header("ETag", f'"{abs(hash(str(file)))}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    yield f"http://127.0.0.1:{server.server_port}", served, stop
    stop()


CODE = """
import json, sys
import guidestar as gs
from huggingface_hub import constants
for line in sys.stdin:
    names, constants.HF_HUB_OFFLINE = json.loads(line)
    for name in names:
        try:
            model = gs.load(name)
            print("LOADED", model.shape, model.sample(seeds=[0], steps=2).x.sum().item())
        except Exception as error:
            print(type(error).__name__, error)
    print("DONE", flush=True)
"""


@pytest.fixture
def ask(hub, tmp_path):
    """Load models by name in a process of its own, whose hub is ours, and which may be offline."""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub[0],
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen([sys.executable, "-c", CODE], env=env, stderr=errors, **pipes) as process,
    ):

        def say(*names, offline=False):
            process.stdin.write(json.dumps([names, offline]) + "\n")
            process.stdin.flush()
            lines = list(iter(process.stdout.readline, "DONE\n"))
            return [
                line.rstrip("\n")
                for line in lines
                if line.startswith(("LOADED", "ValueError", "WeightsError"))
            ]

        yield say
        process.stdin.close()
    assert "Retrying" not in (tmp_path / "errors").read_text()


@pytest.mark.slow
def test_models_of_the_hub(hub, ask, tmp_path):
    _, served, stop = hub
    loaded, pickled, missing = ask("owner/small", "owner/pickled", "owner/nothing")
    expected = gs.load(tmp_path / "hub/owner/small").sample(seeds=[0], steps=2).x.sum().item()
    assert loaded == f"LOADED (2, 8, 8) {expected}"
    assert pickled == (
        "ValueError owner/pickled: this repository holds pickled weights only "
        "(unet/diffusion_pytorch_model.bin), which can run any code and are not read; "
        "look for one with safetensors, or write its pipeline anew with save_pretrained"
    )
    assert missing.startswith(
        "ValueError owner/nothing: there is no such folder, and no such repository on the "
        "Hugging Face hub"
    )
    fetched = {name for command, name in served if command == "GET"}
    assert fetched == {
        f"owner/small/{f}"
        for f in (
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
        )
    }
    # Without a network, what was fetched is found again, and anything else is one line.
    again, never = ask("owner/small", "owner/other", offline=True)
    assert again == loaded
    # Where nothing answers, nothing is tried twice.
    stop()
    again, refused = ask("owner/small", "owner/other")
    assert again == loaded and refused.startswith("ValueError owner/other: there is no such folder")
    assert never.startswith(
        "ValueError owner/other: there is no such folder, and the Hugging Face hub does not "
        "answer (OfflineModeIsEnabled: "
    )


def test_which_files_are_fetched():
    sdxl = [
        *(
            "README.md",
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "scheduler/scheduler_config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
        ),
        *(
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
        ),
        *(
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/flax_model.msgpack",
        ),
        *(
            "unet/model.onnx",
            "vae_1_0/diffusion_pytorch_model.safetensors",
            "safety_checker/model.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
        ),
        *(
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model-00002-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
        ),
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.fp16.json",
        "tokenizer_2/spiece.model",
    ]
    assert set(wanted("x/y", sdxl)) == {
        *(
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ),
        *(
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "tokenizer_2/spiece.model",
        ),
        *(
            "text_encoder_3/model-00001-of-00002.safetensors",
            "text_encoder_3/model-00002-of-00002.safetensors",
            "text_encoder_3/model.safetensors.index.json",
        ),
    }
    at_the_root = [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
        "diffusion_pytorch_model.bin",
    ]
    assert set(wanted("x/y", at_the_root)) == set(at_the_root[:3])
    ours = [
        "guidestar.json",
        "guidance.toml",
        "README.md",
        "weak/unet/config.json",
        "weak/unet/diffusion_pytorch_model.safetensors",
        "x.bin",
    ]
    assert wanted("x/y", ours) == ours[:-1]
    with pytest.raises(ValueError, match=r"^x/y: this repository holds no weights; look for"):
        wanted("x/y", ["README.md"])


def test_names_that_are_no_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "runs").mkdir(parents=True)
    for name in (
        "stabilityai/stable-diffusion-xl-base-1.0",
        "facebook/DiT-XL-2-256",
        "black-forest-labs/FLUX.1-dev",
        "runwayml/sd-v1.5",
    ):
        assert repository_of(name) == name
        assert repository_of(f"https://huggingface.co/{name}") == name
    assert repository_of("https://huggingface.co/out/model") == "out/model"
    monkeypatch.setattr(
        "guidestar.model.locating.fetch", lambda name: pytest.fail(f"asked for {name}")
    )
    paths = ("fashion-mnst", "./a/b", "/a/b", "a/b/c", "../a", "a/", "out/model", "a/model.pt")
    for name in (*paths, "a/photo.PNG", "https://huggingface.co/a", "https://example.com/a/b"):
        assert repository_of(name) is None
        with pytest.raises(
            ValueError,
            match=r"^unknown model '.*'.*; give one of emoji, fashion-mnist, a folder .*, or "
            r"owner/model of the Hugging Face hub$",
        ):
            gs.load(name)
    with pytest.raises(ValueError, match=r"^unknown model 'owner/model'; give one of "):
        gs.load(Path("owner/model"))
    with pytest.raises(ValueError, match=r"'fashion-mnst' \(did you mean 'fashion-mnist'\?\); "):
        gs.load("fashion-mnst")
    with pytest.raises(
        ValueError,
        match=r"'out/model' \(there is out, but no 'model' in it; the repository of that name is "
        r"https://huggingface.co/out/model\); ",
    ):
        gs.load("out/model")
    with pytest.raises(ValueError, match=r"\(there is out/runs, but no 'x' in it\); "):
        gs.load("out/runs/x/y")


def test_files_in_the_place_of_folders(tmp_path):
    for file, told in (
        ("x.pkl", "guidestar.checkpoints.edm.edm_model"),
        ("x.pt", "guidestar.checkpoints.adm.adm_model"),
    ):
        (tmp_path / file).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"is a file, and a model is a folder; .*{told}"):
            gs.load(tmp_path / file)


@pytest.mark.slow
def test_the_command_that_converts_pickled_weights_works(tmp_path):
    """What the refusal says, run as it stands."""
    small().save_pretrained(tmp_path / "unet", safe_serialization=False)
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(
        WeightsError, match="are not read; write them anew with: python -c "
    ) as caught:
        gs.load(tmp_path)
    command = str(caught.value).partition("write them anew with: python -c ")[2]
    assert "\n" not in command
    subprocess.run(
        ["bash", "-c", f"{sys.executable} -c {command}"], check=True, capture_output=True
    )
    made = gs.load(tmp_path).denoiser.net.net.state_dict()
    assert all(torch.equal(v, made[k]) for k, v in small().state_dict().items())
    text = t5_text()
    torch.save(text.state_dict(), tmp_path / "pytorch_model.bin")  # with two names for one table
    text.config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                **json.loads((tmp_path / "config.json").read_text()),
                "architectures": ["T5EncoderModel"],
            }
        )
    )
    with pytest.raises(ValueError, match="python -c ") as caught:
        read_text_model(tmp_path, "T5")
    subprocess.run(
        ["bash", "-c", f"{sys.executable} -c {str(caught.value).partition('python -c ')[2]}"],
        check=True,
        capture_output=True,
    )
    assert all(
        torch.equal(v, text.state_dict()[k])
        for k, v in read_text_model(tmp_path, "T5").state_dict().items()
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("nets", ["../weak"], r"nets must be names of folders beside it, not \['../weak'\]$"),
        ("nets", 5, "nets must be names of folders beside it, not 5$"),
        ("classifiers", [5], r"classifiers must be names of folders beside it, not \[5\]$"),
        ("clips", {"..": {}}, "clips must be names of folders beside it, each with an object"),
        ("defaults", [1], r"defaults must be an object, not \[1\]$"),
    ],
)
def test_a_folder_names_nothing_outside_it(key, value, says, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(SHIPPED / "fashion-mnist", folder)
    about = json.loads((folder / "guidestar.json").read_text(encoding="utf-8"))
    (folder / "guidestar.json").write_text(json.dumps(about | {key: value}), encoding="utf-8")
    with pytest.raises(WeightsError, match=says):
        gs.load(folder)


def test_settings_of_encoders_name_no_code(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 8,
                "attn_implementation": "owner/kernel",
                "_attn_implementation_internal": "owner/kernel",
                "auto_map": {"x": "y"},
            }
        )
    )
    assert encoder_settings(tmp_path / "config.json") == {"hidden_size": 8}


def test_the_command_that_converts_quotes_the_path():
    command = conversion(Path("/tmp/a '$(touch b)'/pytorch_model.bin")).removeprefix(
        "write them anew with: "
    )
    words = shlex.split(command)
    assert (
        words[:2] == ["python", "-c"]
        and len(words) == 3
        and repr("/tmp/a '$(touch b)'/pytorch_model.bin") in words[2]
    )


def test_of_several_variants_one_is_fetched():
    part = lambda *names: [f"unet/diffusion_pytorch_model{n}" for n in names]
    at = lambda *names: list(wanted("x/y", part(*names)))
    assert at(".bf16.safetensors", ".non_ema.safetensors") == part(".bf16.safetensors")
    assert at(".bf16.safetensors", ".fp16.safetensors") == part(".fp16.safetensors")
    assert at(".bf16.safetensors", ".fp16.safetensors", ".safetensors") == part(".safetensors")
    shards = (
        "-00001-of-00002.safetensors",
        "-00002-of-00002.safetensors",
        ".safetensors.index.json",
    )
    older = ("-00001-of-00002.bf16.safetensors", ".safetensors.bf16.index.json")
    newer = (".bf16-00001-of-00002.safetensors", ".safetensors.index.bf16.json")
    assert (
        at(*shards, *older) == part(*shards)
        and at(*older) == part(*older)
        and at(*newer) == part(*newer)
    )
    assert at(".safetensors", *shards, ".fp16.safetensors") == part(".safetensors", *shards)
