"""Make the pictures of docs/studio.md: a visit of the page in a real Chromium.

python docs/make_studio.py            (needs Chromium; apt-get install chromium)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from guidestar.io.images import to_bytes
from guidestar.serve.web import Limits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
FIGURES = ROOT / "docs" / "figures"
COLOURS = 128
PATIENCE = 300_000

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


def make(visit: Any) -> None:
    """Make pictures, and write an error."""
    visit.make()
    shoot(visit, "make")
    visit.write("cfg(3) + clasifier(0.75)")
    visit.page.wait_for_selector("#gs-problem mark")
    shoot(visit, "error", clip={"x": 0, "y": 60, "width": 540, "height": 420})


def compare(visit: Any) -> None:
    """Compare two expressions."""
    visit.tab("Compare")
    visit.page.fill("#gs-second textarea", "cond")
    visit.page.click("#gs-compare")
    visit.page.wait_for_selector("#gs-compared h4 >> nth=2")
    shoot(visit, "compare", full_page=True)


def explain(visit: Any) -> None:
    """Explain a run."""
    visit.tab("Explain")
    visit.page.click("#gs-explain")
    visit.page.wait_for_selector(".gs-pushes")
    shoot(visit, "explain")


def plot(visit: Any) -> None:
    """Plot two settings."""
    visit.tab("X/Y plot")
    visit.until("() => document.querySelector('#gs-values-y textarea')?.value === '4, 8, 16, 32'")
    visit.page.fill("#gs-values-x textarea", "1, 2, 4, 8")
    visit.page.fill("#gs-values-y textarea", "4, 8, 16")
    visit.page.click("#gs-plot-run")
    visit.page.wait_for_selector("#gs-plot img")
    shoot(visit, "plot", full_page=True)


def inverse(visit: Any) -> None:
    """Paint over a picture, and have it filled in."""
    page = visit.page
    visit.tab("Inverse problems")
    page.wait_for_selector("#gs-picture canvas")
    boot = visit.model.sample("ankle boot", seeds=[5], steps=10).pil()[0].resize((280, 280))
    file = {"name": "boot.png", "mimeType": "image/png", "buffer": to_bytes(boot)}
    page.set_input_files("#gs-picture input[type=file]", file)
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


def phone(visit: Any) -> None:
    """Make pictures on a phone, in the dark."""
    visit.make()
    visit.page.locator("#gs-run").scroll_into_view_if_needed()
    visit.page.mouse.wheel(0, 600)
    shoot(visit, "phone")


SHOTS = {f.__name__: f for f in (make, compare, explain, plot, inverse, phone)}


def main() -> None:
    """Visit the page, and do what a person does."""
    import guidestar as gs
    from helpers.browser import Visit, browser
    from helpers.serving import serving

    models = {name: gs.load(name) for name in ("fashion-mnist", "emoji")}
    shirt = f"model=fashion-mnist&cond=ankle boot&seeds=0-3&steps=10&guidance={quote(GUIDANCE)}"
    hearts = "model=emoji&cond=a red heart&cond=a green apple&seeds=0-1"
    with serving(models, Limits(), studio=True) as served, browser() as chromium:
        for name in sys.argv[1:] or SHOTS:
            dark = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
            query, more = (hearts, dark) if name == "phone" else (shirt, {})
            with Visit(chromium, served.url, query, patience=PATIENCE, **more) as visit:
                visit.model = models["fashion-mnist"]
                SHOTS[name](visit)


if __name__ == "__main__":
    main()
