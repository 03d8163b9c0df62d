"""Make the pictures of docs/studio.md: a visit of the page in a real Chromium.

python docs/make_studio.py            (needs Chromium; apt-get install chromium)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
FIGURES = ROOT / "docs" / "figures"
COLOURS = 128

GUIDANCE = "cfg(3, interval=(0.2, 5)) + classifier(0.75)"


def shoot(visit: Any, name: str, **options: Any) -> None:
    """Save what is seen as a small PNG."""
    path = FIGURES / f"studio-{name}.png"
    visit.page.wait_for_timeout(700)
    visit.page.screenshot(path=path, **options)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(path, path.stat().st_size)


def main() -> None:
    """Visit the page, and do what a person does."""
    import guidestar as gs
    from helpers.browser import Visit, browser
    from helpers.serving import serving

    models = {name: gs.load(name) for name in ("fashion-mnist", "emoji")}
    query = f"model=fashion-mnist&cond=ankle boot&cond=bag&seeds=0-3&steps=10&guidance={GUIDANCE}"
    with serving(models, studio=True) as served, browser() as chromium:
        with Visit(chromium, served.url, query.replace("+", "%2B")) as visit:
            page = visit.page
            visit.make()
            shoot(visit, "make")
            visit.write("cfg(3) + clasifier(0.75)")
            page.wait_for_selector("#gs-problem mark")
            shoot(visit, "error", clip={"x": 0, "y": 60, "width": 540, "height": 420})
            visit.write(GUIDANCE)
            page.wait_for_selector("#gs-problem mark", state="detached")
            visit.tab("Compare")
            page.fill("#gs-second textarea", "cond")
            page.click("#gs-compare")
            page.wait_for_selector("#gs-compared h4 >> nth=2")
            shoot(visit, "compare", full_page=True)
            visit.tab("Explain")
            page.click("#gs-explain")
            page.wait_for_selector(".gs-pushes")
            shoot(visit, "explain")
            visit.tab("X/Y plot")
            page.fill("#gs-values-x textarea", "1, 2, 4, 8")
            page.fill("#gs-values-y textarea", "4, 8, 16")
            page.click("#gs-plot-run")
            page.wait_for_selector("#gs-plot img")
            shoot(visit, "plot", full_page=True)
            restore(visit, models["fashion-mnist"])
        emoji = "model=emoji&cond=a red heart&cond=a green apple&seeds=0-3"
        phone = {"width": 390, "height": 844}
        with Visit(chromium, served.url, emoji, viewport=phone, color_scheme="dark") as visit:
            visit.make()
            visit.page.locator("#gs-state").scroll_into_view_if_needed()
            visit.page.mouse.wheel(0, 500)
            shoot(visit, "phone")


def restore(visit: Any, model: Any) -> None:
    """Paint over a picture, and have it filled in."""
    boot = model.sample("ankle boot", seeds=[5], steps=10).pil()[0].resize((280, 280))
    visit.tab("Inverse problems")
    page = visit.page
    page.wait_for_selector("#gs-picture canvas")
    boot.save("/tmp/boot.png")
    page.set_input_files("#gs-picture input[type=file]", "/tmp/boot.png")
    page.wait_for_selector("#gs-picture button[aria-label='Brush Size']")
    page.wait_for_timeout(1000)
    box = page.locator("#gs-picture canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for down in (-30, 0, 30):
        page.mouse.move(x - 50, y + down)
        page.mouse.down()
        page.mouse.move(x + 50, y + down, steps=6)
        page.mouse.up()
    page.wait_for_timeout(1000)
    page.click("#gs-restore")
    visit.done("#gs-restore-state")
    shoot(visit, "inverse", full_page=True)


if __name__ == "__main__":
    main()
