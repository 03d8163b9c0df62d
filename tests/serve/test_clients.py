"""Clients that people have: the openai package, and programs written for A1111."""

from __future__ import annotations

import json
import threading
import time

import openai
import pytest

from guidestar.io.images import read_settings, to_pil
from guidestar.serve.web import Keys
from helpers.served import toy_model
from helpers.serving import PICTURE, opened, picture, pixels, serving

KEY = "a-key-of-one-client-123"


@pytest.fixture(scope="module")
def served():
    with serving(keys=Keys([KEY, "a-key-of-another-client"])) as served:
        yield served


@pytest.fixture
def images(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client.images


@pytest.fixture
def web(served):
    with served.client(Authorization=f"Bearer {KEY}") as client:
        yield client


@pytest.fixture(scope="module")
def reference():
    return toy_model(shape=PICTURE)


def wanted(reference, cond="cat", **asked):
    return [pixels(image) for image in to_pil(reference.sample(cond, **asked).images)]


def test_openai_pictures_in_base64(images, reference):
    found = images.generate(
        model="toy",
        prompt="cat",
        n=3,
        size="8x8",
        response_format="b64_json",
        extra_body={
            "seed": 4,
            "num_inference_steps": 5,
            "guidance_scale": 2.5,
            "negative_prompt": "blurry",
        },
    )
    assert [pixels(p.b64_json) for p in found.data] == wanted(
        reference, guidance="cfg(2.5)", seeds=[4, 5, 6], steps=5, negative="blurry"
    )
    assert found.created > 1.7e9


def test_openai_pictures_by_address(images, reference, served):
    found = images.generate(
        prompt="dog",
        response_format="url",
        extra_body={"seed": 4, "guidance": "cfg(2) + apg(1)", "solver": "ddpm"},
    )
    import httpx

    data = httpx.get(found.data[0].url).content  # without a key: the address is a secret
    assert [pixels(data)] == wanted(
        reference, "dog", guidance="cfg(2) + apg(1)", seeds=[4], solver="ddpm"
    )
    assert read_settings(data)["seeds"] == [4]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_openai_other_formats(images, kind):
    found = images.generate(prompt="cat", output_format=kind)
    assert opened(found.data[0].b64_json).format == kind.upper()


@pytest.mark.parametrize("partial", [0, 2])
def test_openai_streams(images, reference, partial):
    stream = images.generate(
        prompt="cat",
        stream=True,
        partial_images=partial,
        extra_body={"seed": 4, "num_inference_steps": 200},
    )
    events = list(stream)
    kinds = [e.type for e in events]
    assert kinds[-1] == "image_generation.completed"
    partials = [e for e in events if e.type == "image_generation.partial_image"]
    assert [e.partial_image_index for e in partials] == list(range(len(partials)))
    assert len(partials) <= partial and bool(partials) == bool(partial)
    assert [pixels(events[-1].b64_json)] == wanted(reference, seeds=[4], steps=200)


def test_openai_seeds_are_random_unless_given(images):
    first, second = (images.generate(prompt="cat") for _ in range(2))
    assert first.seeds != second.seeds


def test_openai_lists_models(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        assert [m.id for m in client.models.list()] == ["toy"]
        assert client.models.retrieve("toy").owned_by == "guidestar"


def test_openai_fields_without_meaning_are_named(images):
    found = images.generate(prompt="cat", quality="high", user="me")
    assert found.warnings == [f"{f} means nothing to this model" for f in ("quality", "user")]


def test_openai_addresses_are_of_png_files(images):
    found = images.generate(prompt="cat", response_format="url", output_format="webp")
    assert found.output_format == "png" and found.data[0].url.endswith("/0.png")
    text = "an address is of a PNG; webp is for response_format b64_json"
    assert found.warnings == [text]
    assert images.generate(prompt="cat", output_format="webp").warnings == []


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"extra_body": {"cfg": 3}}, openai.UnprocessableEntityError, "cfg"),
        ({"model": "dall-e-3"}, openai.NotFoundError, "the models are toy"),
        ({"size": "1024x1024"}, openai.UnprocessableEntityError, "pictures of 8x8"),
        ({"n": 17}, openai.UnprocessableEntityError, "n may be 16"),
        ({"prompt": "cow"}, openai.UnprocessableEntityError, "unknown class"),
        (
            {"prompt": "x" * 5000},
            openai.UnprocessableEntityError,
            "the length of prompt may be 4000",
        ),
        (
            {"extra_body": {"guidance": "cfg(1)", "guidance_scale": 1}},
            *(openai.UnprocessableEntityError, "not both"),
        ),
    ],
)
def test_openai_errors(images, asked, error, text):
    with pytest.raises(error, match=text):
        images.generate(**{"prompt": "cat", **asked})


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("path", "asked", "field", "text"),
    [
        ("openai", {"n": 17}, "n", "n may be 16 at most here, not 17"),
        ("openai", {"prompt": LONG}, "prompt", "the length of prompt may be 4000 at most here"),
        ("openai", {"negative_prompt": LONG}, "negative_prompt", "the length of negative_prompt"),
        ("openai", {"num_inference_steps": 999}, "num_inference_steps", "num_inference_steps may"),
        ("openai", {"guidance_scale": 5000}, "guidance_scale", "the scale of cfg may be 1000"),
        ("openai", {"guidance": "cfg(5000)"}, "guidance", "the scale of cfg may be 1000"),
        (
            "openai",
            {"guidance": "dps(1)"},
            "guidance",
            "'dps(1)' lowers the loss of an observed",
        ),
        ("txt2img", {"prompt": LONG}, "prompt", "the length of prompt may be 4000 at most here"),
        ("txt2img", {"negative_prompt": LONG}, "negative_prompt", "the length of negative_prompt"),
        ("txt2img", {"batch_size": 9, "n_iter": 2}, "batch_size", "batch_size × n_iter may be 16"),
        ("txt2img", {"batch_size": 2, "n_iter": 9}, "n_iter", "batch_size × n_iter may be 16"),
        ("txt2img", {"batch_size": 4, "n_iter": 5}, "n_iter", "batch_size × n_iter may be 16"),
        ("txt2img", {"batch_size": 5, "n_iter": 5}, "batch_size", "batch_size × n_iter may be 16"),
        ("txt2img", {"n_iter": 17}, "n_iter", "batch_size × n_iter may be 16 at most here, not 17"),
        ("txt2img", {"prompt": "cow"}, "prompt", "unknown class 'cow'"),
        ("txt2img", {"prompt": "\ud800"}, "prompt", "prompt: Input should be a valid string"),
        ("txt2img", {"negative_prompt": "cow"}, "negative_prompt", "unknown class 'cow'"),
        ("txt2img", {"guidance": "cfg(3"}, "guidance", "guidance: this is not an expression"),
        ("txt2img", {"sampler_index": "Leap"}, "sampler_index", "there is no such sampler"),
        ("txt2img", {"sampler_name": "Leap"}, "sampler_name", "there is no such sampler"),
        (
            "txt2img",
            {"sampler_index": "Heun", "guidance": "cfgpp(0.5)"},
            *("sampler_index", ""),
        ),
        ("png-info", {"image": "?"}, "image", "image must be a picture in base64"),
        ("png-info", {"image": picture()}, "image", "the picture holds no guidestar settings"),
        ("openai", {"prompt": "cow"}, "prompt", "unknown class 'cow'"),
        ("openai", {"negative_prompt": "cow"}, "negative_prompt", "unknown class 'cow'"),
        ("openai", {"solver": "leap"}, "solver", "unknown solver 'leap'"),
        ("openai", {"guidance": "autoguidance(2, net=none)"}, "guidance", ""),
        ("txt2img", {"cfg_scale": -5000}, "cfg_scale", "the scale of cfg may be 1000"),
        ("txt2img", {"guidance": "cfg(5000)"}, "guidance", "the scale of cfg may be 1000"),
        ("txt2img", {"steps": 999}, "steps", "steps may be 250 at most here, not 999"),
        ("img2img", {"init_images": ["AAAA"]}, "init_images", "init_images cannot be read as a"),
        ("img2img", {"init_images": ["?"]}, "init_images", "init_images must be a picture in"),
    ],
)
def test_errors_name_the_fields_that_the_client_sent(web, path, asked, field, text):
    route = "/v1/images/generations" if path == "openai" else f"/sdapi/v1/{path}"
    described = {} if path == "png-info" else {"prompt": "cat"}
    body = json.dumps({**described, **asked})
    answer = web.post(route, content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["param"] == field
    assert error["message"].startswith(text) and "cond" not in error["message"]


def test_openai_without_a_key(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="no", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="a key is needed"):
        client.images.generate(prompt="cat")


def test_a1111_txt2img(web, reference):
    asked = {
        "prompt": "cat",
        "negative_prompt": "blurry",
        "seed": 7,
        "steps": 5,
        "cfg_scale": 2.5,
        "width": 8,
        "height": 8,
        "sampler_name": "DPM++ 2M Karras",
        "batch_size": 2,
        "n_iter": 2,
        "override_settings": {"sd_model_checkpoint": "toy"},
        **{"restore_faces": False, "styles": [], "tiling": False, "enable_hr": False},
    }
    found = web.post("/sdapi/v1/txt2img", json=asked).json()
    assert [pixels(p) for p in found["images"]] == wanted(
        reference,
        guidance="cfg(2.5)",
        seeds=[7, 8, 9, 10],
        steps=5,
        negative="blurry",
        solver="dpmpp-2m",
        grid="karras",
    )
    info = json.loads(found["info"])
    assert info["all_seeds"] == [7, 8, 9, 10] and info["seed"] == 7 and not info["warnings"]
    assert "Seed: 8" in info["infotexts"][1] and found["parameters"]["steps"] == 5


def test_a1111_fields_without_meaning_are_named_and_unknown_ones_refused(web):
    asked = {"prompt": "cat", "restore_faces": True, "enable_hr": True, "save_images": False}
    info = json.loads(web.post("/sdapi/v1/txt2img", json=asked).json()["info"])
    assert info["warnings"] == [f"{f} means nothing here" for f in ("enable_hr", "restore_faces")]
    answer = web.post("/sdapi/v1/txt2img", json={"prompt": "cat", "cfg": 3})
    assert answer.status_code == 422 and "cfg" in answer.json()["detail"]


def test_a1111_img2img(web, reference):
    from guidestar.serve.web.limits import Limits
    from guidestar.serve.web.pictures import to_tensor

    asked = {"prompt": "cat", "seed": 3, "steps": 8, "init_images": [picture((8, 8))]}
    found = web.post("/sdapi/v1/img2img", json={**asked, "denoising_strength": 0.5}).json()
    start = to_tensor(picture((8, 8)), PICTURE, Limits(), "start")[None]
    rho = float(reference.grid(8)[4].rho)  # four of eight steps are left
    assert reference.grid(8).from_rho(rho).steps == 4
    assert [pixels(found["images"][0])] == wanted(
        reference, seeds=[3], steps=8, start=start, start_rho=rho
    )
    larger = web.post("/sdapi/v1/img2img", json={**asked, "init_images": [picture((32, 20))]})
    assert opened(larger.json()["images"][0]).size == (8, 8)
    wide = {**asked, "init_images": [picture((16, 8))], "denoising_strength": 0.5}
    for mode, how in ((0, "stretch"), (1, "crop")):
        found = web.post("/sdapi/v1/img2img", json={**wide, "resize_mode": mode}).json()
        start = to_tensor(picture((16, 8)), PICTURE, Limits(), "start", resize=how)[None]
        assert [pixels(found["images"][0])] == wanted(
            reference, seeds=[3], steps=8, start=start, start_rho=rho
        )
        assert json.loads(found["info"])["warnings"] == []
    found = web.post("/sdapi/v1/img2img", json={**wide, "resize_mode": 2}).json()
    assert "resize_mode 2 means nothing here" in json.loads(found["info"])["warnings"][0]


@pytest.mark.parametrize(
    ("path", "asked", "text"),
    [
        ("img2img", {}, "needs a picture"),
        ("img2img", {"init_images": [picture()] * 2}, "one picture to start from is enough"),
        ("img2img", {"init_images": [picture()], "mask": picture()}, "observation"),
        ("txt2img", {"denoising_strength": 0.5}, "img2img"),
        ("txt2img", {"height": 512}, "8 × 8"),
        ("img2img", {"init_images": ["/etc/passwd"]}, "base64"),
        ("txt2img", {"init_images": [picture()]}, "img2img"),
        ("txt2img", {"width": 512}, "8 × 8"),
        ("txt2img", {"sampler_name": "Leap"}, "no such sampler"),
        ("txt2img", {"scheduler": "beta57"}, "no scheduler"),
        ("txt2img", {"override_settings": {"sd_vae": "x"}}, "only sd_model_checkpoint"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "/m"}}, "the models are toy"),
        ("txt2img", {"cfg_scale": 2, "guidance": "cfg(2)"}, "not both"),
        (
            "txt2img",
            {"batch_size": 5, "n_iter": 5},
            "batch_size × n_iter may be 16 at most here, not 25",
        ),
    ],
)
def test_a1111_errors(web, path, asked, text):
    answer = web.post(f"/sdapi/v1/{path}", json={"prompt": "cat", **asked})
    assert answer.status_code in (404, 422) and text in answer.json()["detail"]


def test_a1111_a_picture_of_no_known_format(web):
    answer = web.post("/sdapi/v1/png-info", json={"image": "AAAA"})
    text = "the picture cannot be read as a picture (unknown format); give a PNG that "
    assert answer.status_code == 422 and answer.json()["detail"].startswith(text)


def test_a1111_names_that_are_empty_are_not_given(web):
    asked = {"prompt": "cat", "steps": 2, "seed": 1}
    found = web.post("/sdapi/v1/txt2img", json={**asked, "scheduler": "", "sampler_name": ""})
    assert found.json()["images"] == web.post("/sdapi/v1/txt2img", json=asked).json()["images"]


def test_a1111_progress_and_interrupt_of_ones_own(web, served):
    answers = {}

    def ask(task):
        asked = {"prompt": "cat", "steps": 250, "batch_size": 16, "force_task_id": task}
        answers[task] = web.post("/sdapi/v1/txt2img", json=asked)

    def progress(client, **query):
        return client.get("/sdapi/v1/progress", params=query).json()

    threads = [threading.Thread(target=ask, args=(task,)) for task in ("one", "two")]
    for thread in threads:
        thread.start()
    while not (
        progress(web, id_task="one")["current_image"] and progress(web, id_task="two")["progress"]
    ):
        assert time.sleep(0.002) is None and len(answers) < 2
    found = progress(web, id_task="one")
    assert 0 < found["progress"] < 1 and found["state"]["job"] == "one"
    assert found["state"]["sampling_steps"] == 250 and found["eta_relative"] > 0
    assert opened(found["current_image"]).size == (8, 8)
    with served.client(Authorization="Bearer a-key-of-another-client") as other:
        assert progress(other)["progress"] == 0 and progress(other)["state"]["job"] == ""
        other.post("/sdapi/v1/interrupt")
    web.post("/sdapi/v1/interrupt", json={"id_task": "one"})
    threads[0].join()
    assert answers["one"].status_code == 409
    web.post("/sdapi/v1/interrupt")
    threads[1].join()
    assert progress(web)["state"]["job_count"] == 0


def test_a1111_lists_and_png_info(web):
    found = web.post("/sdapi/v1/txt2img", json={"prompt": "cat", "seed": 1, "steps": 2}).json()
    info = web.post("/sdapi/v1/png-info", json={"image": found["images"][0]}).json()
    assert info["parameters"]["seeds"] == [1] and json.loads(info["info"])["steps"] == 2
    assert web.post("/sdapi/v1/png-info", json={"image": picture()}).status_code == 422
    names = {s["name"]: s["aliases"] for s in web.get("/sdapi/v1/samplers").json()}
    assert names["DPM++ 2M"] == ["dpmpp-2m"] and names["Euler a"] == ["ddim(eta=1.0)"]
    for name in names:
        asked = {"prompt": "cat", "steps": 3, "sampler_name": name, "scheduler": "Karras"}
        assert web.post("/sdapi/v1/txt2img", json=asked).status_code == 200
    assert [m["model_name"] for m in web.get("/sdapi/v1/sd-models").json()] == ["toy"]
