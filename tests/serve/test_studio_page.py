"""The studio in a real Chromium: every function, clicked through."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from guidestar.io.images import read_settings
from guidestar.serve.web import Keys, Limits
from helpers.browser import Visit, browser, find_browser
from helpers.served import Slow, toy_model
from helpers.serving import PICTURE, opened, pixels, serving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Gradio's own warnings
QUERY = "cond=cat&seeds=1-2&steps=4&solver=ddim&guidance=cfg(2)"
LIMITS = Limits(seconds=60)


@pytest.fixture(scope="module")
def chromium():
    find_browser()
    pytest.importorskip("gradio")
    with browser() as opened_:
        yield opened_


@pytest.fixture(scope="module")
def served(chromium):
    models = {"toy": toy_model(shape=PICTURE), "other": toy_model(Slow(), shape=PICTURE)}
    with serving(models, LIMITS, studio=True) as found:
        yield found


@pytest.fixture
def visit(chromium, served):
    with Visit(chromium, served.url, QUERY) as found:
        yield found
        assert not found.errors
        # Nothing comes from elsewhere: no fonts, scripts or telemetry.
        own = (served.url, "data:", "blob:")
        assert [u for u in found.asked if not u.startswith(own)] == []


def sampled(served, guidance="cfg(2)", cond="cat", seeds=(1, 2), steps=4):
    samples = served.model.sample(cond, guidance=guidance, seeds=seeds, steps=steps, solver="ddim")
    return [pixels(image) for image in samples.pil()]


def test_the_address_makes_the_pictures_that_sample_makes(visit, served):
    found = visit.make()
    assert [pixels(p) for p in found] == sampled(served)
    settings = read_settings(base64.b64decode(found[1]))
    assert settings["guidance"] == "cfg(2)" and settings["seeds"] == [1, 2]


def test_a_download_carries_the_settings(visit):
    visit.make()
    with visit.page.expect_download() as download:
        visit.page.click("#gs-pictures figure a >> nth=1")
    assert download.value.suggested_filename == "cat-seed2.png"
    assert read_settings(download.value.path())["index"] == 1


def test_sliders_and_text_follow_each_other(visit, served):
    visit.slide(0, "scale", 5)
    visit.until_text("cfg(5)")
    visit.page.select_option("#gs-controls [data-add]", "pag")
    visit.until_text("cfg(5) + pag(3)")
    visit.page.wait_for_selector('#gs-controls section[data-index="1"]')
    visit.page.select_option("#gs-controls [data-base]", "uncond")
    visit.until_text("uncond + cfg(5) + pag(3)")
    visit.page.click("#gs-controls [data-remove='0']")
    visit.until_text("uncond + pag(3)")
    visit.write("cfg(1.5) + apg(4, momentum=0.25) | rescale(0.7)")
    visit.until("() => document.querySelectorAll('#gs-controls section').length === 3")
    slider = '#gs-controls input[type=range][data-index="1"]'
    assert visit.page.input_value(f'{slider}[data-name="momentum"]') == "0.25"
    field = visit.page.locator('#gs-controls input[type=text][data-index="2"][data-name="scale"]')
    field.fill("0.4")
    field.blur()
    visit.until_text("cfg(1.5) + apg(4, momentum=0.25) | rescale(0.4)")
    visit.until_address("rescale%280.4%29")
    found = [pixels(p) for p in visit.make()]
    assert found == sampled(served, "cfg(1.5) + apg(4, momentum=0.25) | rescale(0.4)")


def test_an_error_is_marked_at_its_place_and_the_plan_follows(visit):
    page = visit.page
    assert "8 evaluations a picture" in page.inner_text(".gs-plan")
    visit.write("cfg(2) + apgg(1.5)")
    page.wait_for_selector("#gs-problem mark")
    assert page.inner_text("#gs-problem mark") == "apgg"
    assert "did you mean 'apg'?" in page.inner_text("#gs-problem p")
    visit.write("cfg(2) + pag(1)")
    visit.until("() => document.querySelector('.gs-plan').innerText.includes('12 evaluations')")
    assert page.locator("#gs-problem mark").count() == 0
    assert page.locator(".gs-plan rect").count() == 12
    visit.write("cfg(2000)")
    page.wait_for_selector("#gs-problem mark")
    assert "1000 at most" in page.inner_text("#gs-problem p")


def test_the_pictures_are_drawn_again_at_once(visit, served):
    visit.page.check("#gs-live input")
    visit.slide(0, "scale", 4)
    visit.done()
    assert [pixels(p) for p in visit.pictures()] == sampled(served, "cfg(4)")


def test_new_seeds_at_every_run(visit):
    visit.page.check("#gs-random input")
    visit.make()
    seeds = visit.page.input_value("#gs-seeds input, #gs-seeds textarea")
    first = int(seeds.partition("-")[0])
    assert seeds == f"{first}-{first + 1}" and first != 1


def test_a_run_is_cancelled(chromium, served):
    with Visit(chromium, served.url, "model=other&cond=cat&steps=100&guidance=cfg(2)") as visit:
        visit.page.click("#gs-run")
        visit.page.wait_for_selector("#gs-state .gs-running")
        visit.page.click("#gs-cancel")
        visit.page.wait_for_selector("#gs-state .gs-cancelled")
        assert "cancelled" in visit.page.inner_text("#gs-state")


def test_two_expressions_are_compared(visit, served):
    visit.tab("Compare")
    visit.page.fill("#gs-second textarea", "cond + pag(2)")
    visit.page.click("#gs-compare")
    visit.page.wait_for_selector("#gs-compared h4 >> nth=2")
    found = [pixels(p) for p in visit.pictures("#gs-compared")]
    first, second = sampled(served), sampled(served, "cond + pag(2)")
    assert found[:4] == first + second
    for a, b, shown in zip(first, second, found[4:], strict=True):
        delta = np.array(b, float) - np.array(a, float)
        wanted = np.round(128 + delta * 127 / np.abs(delta).max())
        assert np.array_equal(np.array(shown), wanted)


def test_an_x_y_plot(visit):
    visit.tab("X/Y plot")
    visit.until("() => document.querySelector('#gs-axis-x input')?.value === 'cfg: scale'")
    visit.until("() => document.querySelector('#gs-values-y textarea')?.value === '4, 8, 16, 32'")
    visit.page.fill("#gs-values-x textarea", "1, 3, 6")
    visit.page.fill("#gs-values-y textarea", "2, 4")
    visit.page.click("#gs-plot-run")
    visit.page.wait_for_selector("#gs-plot img")
    (shown,) = visit.pictures("#gs-plot")
    assert opened(shown).width > 3 * 8 and read_settings(base64.b64decode(shown))["y"] == "steps"
    with visit.page.expect_download() as download:
        visit.page.click("#gs-plot-save")
    assert read_settings(download.value.path())["x"] == "cfg: scale"


def test_a_run_is_explained(visit):
    visit.write("cfg(2) + apg(1.5)")
    visit.until_address("apg")
    visit.tab("Explain")
    visit.page.click("#gs-explain")
    visit.page.wait_for_selector(".gs-pushes")
    assert visit.page.locator(".gs-pushes polyline").count() == 2
    assert visit.page.locator(".gs-pushes h4").all_inner_texts() == ["cfg(2)", "apg(1.5)"]
    assert visit.page.locator(".gs-strip img").count() == 8


def ramp() -> bytes:
    made = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(made, "PNG")
    return made.getvalue()


def test_a_picture_is_inpainted_where_it_was_painted(visit):
    page = visit.page
    visit.tab("Inverse problems")
    page.wait_for_selector("#gs-picture canvas")
    ready = "#gs-picture button[aria-label='Brush Size']"  # the editor offers a brush then
    page.set_input_files(
        "#gs-picture input[type=file]",
        {"name": "ramp.png", "mimeType": "image/png", "buffer": ramp()},
    )
    page.wait_for_selector(ready)
    page.click("#gs-restore")
    page.wait_for_selector("#gs-restore-state .gs-failed")
    assert "paint over" in page.inner_text("#gs-restore-state")
    box = page.locator("#gs-picture canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(800)
    page.click("#gs-restore")
    page.wait_for_selector("#gs-restored figure >> nth=3")
    visit.done("#gs-restore-state")
    found = visit.pictures("#gs-restored")
    assert opened(found[0]).size == (8, 8) and len(found) == 4
    masked = np.asarray(opened(found[1]).convert("RGB"))
    assert (masked == (0x6B, 0x7D, 0xB3)).all(-1).any()


def test_a_dropped_picture_brings_its_settings_back(visit, served, tmp_path):
    samples = served.model.sample(
        "dog", guidance="cond + pag(1.5)", seeds=[7, 8], steps=3, solver="ddim"
    )
    (path, _) = samples.save(tmp_path)
    visit.page.set_input_files("#gs-drop input[type=file]", str(path))
    visit.until_text("cond + pag(1.5)")
    visit.until_address("cond=dog")
    found = [pixels(p) for p in visit.make()]
    assert found == sampled(served, "cond + pag(1.5)", "dog", (7, 8), 3)


def test_a_dropped_picture_without_settings_is_refused(visit, tmp_path):
    (tmp_path / "other.png").write_bytes(ramp())
    visit.page.set_input_files("#gs-drop input[type=file]", str(tmp_path / "other.png"))
    visit.page.wait_for_selector(".toast-wrap :text('holds no guidestar settings')")
    assert visit.text == "cfg(2)"


def test_the_gallery_restores_makes_again_and_deletes(visit, served):
    first = visit.make()
    visit.page.wait_for_selector("#gs-gallery figure >> nth=1")
    loaded = "[...document.querySelectorAll('#gs-gallery img')].map(i => i.naturalWidth)"
    visit.until(f"() => ({loaded}).join() === '8,8'")
    with visit.page.expect_download() as download:
        visit.page.click("#gs-gallery figure:nth-child(2) a")
    assert download.value.suggested_filename == "cat-seed2.png"
    assert read_settings(download.value.path())["index"] == 1
    address = visit.page.get_attribute("#gs-gallery figure:nth-child(1) img", "src")
    visit.write("cfg(6)")
    visit.until_address("cfg%286%29")
    visit.page.click("#gs-gallery figure:nth-child(2) [data-action=restore]")
    visit.until_text("cfg(2)")
    visit.until_address("seeds=2")
    visit.page.click("#gs-gallery figure:nth-child(2) [data-action=again]")
    visit.page.wait_for_selector("#gs-gallery figure >> nth=2")
    assert [pixels(p) for p in visit.pictures()] == [pixels(first[1])]
    visit.page.click("#gs-gallery figure:nth-child(1) [data-action=delete]")
    visit.until("() => document.querySelectorAll('#gs-gallery figure').length === 2")
    # Each picture was fetched once, however often the gallery was drawn since.
    assert [u for u in visit.asked if u.endswith(address)] == [served.url + address]
    with served.client() as client:
        assert client.get(address).content == base64.b64decode(first[0])
        other = client.get("/studio/gallery/0123456789abcdef01234567/0.png")
        assert (other.status_code, other.json()["error"]["type"]) == (404, "not_found")


def test_a_run_starts_from_a_dropped_picture(visit, served):
    page = visit.page
    page.click("#gs-starting button:has-text('Start from a picture')")
    page.set_input_files(
        "#gs-start-drop input[type=file]",
        {"name": "ramp.png", "mimeType": "image/png", "buffer": ramp()},
    )
    page.wait_for_selector("#gs-start-shown img")
    page.locator("#gs-strength input[type=number]").fill("0.5")
    visit.until_address("strength=0.5")
    visit.until("() => document.querySelector('.gs-plan').innerText.includes('2 steps')")
    made = [pixels(p) for p in visit.make()]
    small = ImageOps.fit(opened(ramp()), (8, 8), Image.Resampling.LANCZOS)
    start = torch.from_numpy(np.array(small)).float()[None, None] / 127.5 - 1
    rho = float(served.model.grid(4)[2].rho)
    wanted = served.model.sample(
        "cat", guidance="cfg(2)", seeds=[1, 2], steps=4, solver="ddim",
        start=start.repeat(2, 1, 1, 1), start_rho=rho,
    )  # fmt: skip
    assert made == [pixels(image) for image in wanted.pil()]
    # A link opens with the picture as long as the server keeps it; so does the gallery.
    query = page.evaluate("location.search")
    visit.open(query.removeprefix("?"))
    page.wait_for_selector("#gs-start-shown img")
    assert [pixels(p) for p in visit.make()] == made
    page.click("#gs-start-shown [data-remove]")
    page.wait_for_selector("#gs-start-shown img", state="detached")
    visit.until("() => !location.search.includes('start=')")
    assert [pixels(p) for p in visit.make()] == sampled(served)
    page.click("#gs-gallery figure:nth-child(4) [data-action=again]")
    visit.until_address("start=")
    page.wait_for_selector("#gs-gallery figure >> nth=4")
    assert [pixels(p) for p in visit.pictures()] == made[1:]


def test_a_link_whose_start_picture_is_gone_says_so(chromium, served):
    with Visit(chromium, served.url, f"{QUERY}&start=0123456789&strength=0.5") as visit:
        visit.page.wait_for_selector(".toast-wrap :text('drop it again')")
        assert [pixels(p) for p in visit.make()] == sampled(served)


def test_another_model_brings_its_own_settings(visit):
    visit.page.click("#gs-model input")
    visit.page.click("[role=option]:has-text('other')")
    visit.until_address("model=other")
    visit.until_address("seeds=0-3")


def test_it_is_usable_on_a_phone_and_in_the_dark(chromium, served):
    phone = {"width": 390, "height": 844}
    with Visit(chromium, served.url, QUERY, viewport=phone, color_scheme="dark") as visit:
        assert visit.page.evaluate("document.body.classList.contains('dark')")
        wide = "document.documentElement.scrollWidth"
        assert visit.page.evaluate(wide) <= 390
        visit.make()
        assert visit.page.evaluate(wide) <= 390
        visit.page.click("button:has-text('Light / dark')")
        assert not visit.page.evaluate("document.body.classList.contains('dark')")


def test_a_server_with_keys_asks_for_one(chromium):
    keys = Keys(["sesame-open"])
    with serving({"toy": toy_model(shape=PICTURE)}, LIMITS, keys, studio=True) as served:
        with served.client() as client:
            refused = client.get("/studio/")
            assert refused.status_code == 401 and "Basic" in refused.headers["www-authenticate"]
            assert client.get("/studio/", auth=("any", "wrong")).status_code == 401
            # A key as a password is for the page alone: browsers send it for other sites' sake.
            assert client.get("/v1/models", auth=("any", "sesame-open")).status_code == 401
        secret = {"username": "any", "password": "sesame-open"}
        with Visit(chromium, served.url, QUERY, http_credentials=secret) as visit:
            assert len(visit.make()) == 2


def test_the_page_may_load_nothing_from_elsewhere(served):
    with served.client() as client:
        assert client.get("/").headers["location"] == "/studio/"
        found = client.get("/studio/")
        policy = found.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        config = client.get("/studio/config").json()
        assert config["analytics_enabled"] is False
        assert "googleapis" not in json.dumps(config) + found.text
