"""The 3-D view in a headless Chromium: it draws, every control works, it fits, and asks for nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from made_space import a_study, some_levels
from made_up import study_content

from spine_engine.report.page import render
from spine_engine.report.scene import study_scene
from spine_engine.report.study_page import study_page

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Shown:
    """The 3-D page of a made-up study in a browser, and all it said and asked for."""

    def __init__(
        self,
        browser,
        folder: Path,
        *,
        page: str | None = None,
        opened: bool = True,
        script: str | None = None,
        **options,
    ) -> None:
        page = page or render(
            "view.html.j2",
            study_id="1.2.3",
            scene=study_scene(a_study(), some_levels()),
        )
        self.file = folder / "view.html"
        self.file.write_text(page, encoding="utf-8")
        self.context = browser.new_context(
            **{"viewport": {"width": 640, "height": 480}, **options}
        )
        self.page = self.context.new_page()
        self._tools = self.context.new_cdp_session(self.page)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        if script is not None:
            self.page.add_init_script(script)
        self.page.goto(self.file.as_uri())
        if opened:
            self.page.wait_for_selector("[data-ready]", timeout=60_000)

    def picture(self):
        """Return the canvas's pixels ``(H, W, 3)`` once the next frames are drawn, without the ring of its focus."""
        place = self.page.evaluate(
            """async () => {
                const stage = document.querySelector("[data-stage]");
                for (let still = 0, last = null; still < 3; ) {  // nothing scrolls any more
                    stage.scrollIntoView({block: "nearest", behavior: "instant"});
                    await new Promise(requestAnimationFrame);
                    still = scrollY === last ? still + 1 : 0;
                    last = scrollY;
                }
                const box = stage.getBoundingClientRect();
                return {x: Math.round(box.x + scrollX), y: Math.round(box.y + scrollY),
                        width: Math.round(box.width), height: Math.round(box.height), scale: 1};
            }"""
        )
        seen = self._tools.send(
            "Page.captureScreenshot",
            {"format": "png", "clip": place, "optimizeForSpeed": True},
        )  # four times as fast as Playwright's own
        return imagecodecs.png_decode(base64.b64decode(seen["data"]))[
            10:-10, 10:-10, :3
        ].astype(int)

    def is_quiet(self) -> bool:
        """Whether nothing was said, and nothing asked for beyond the file itself and what lies in it."""
        other = [url for url in self.asked if not url.startswith(("data:", "blob:"))]
        return self.said == [] and other == [self.file.as_uri()]


@pytest.fixture
def shown(chromium, tmp_path):
    made: list[Shown] = []

    def show(**options) -> Shown:
        made.append(Shown(chromium, tmp_path, **options))
        return made[-1]

    yield show
    for one in made:
        one.context.close()


def changed(before, after) -> int:
    return int((np.abs(before - after).max(axis=2) > 24).sum())


def test_the_view_draws_and_every_control_changes_the_picture(shown) -> None:
    view = shown()
    page = view.page
    first = view.picture()
    assert (np.abs(first - (16, 21, 28)).max(axis=2) > 40).mean() > 0.05
    assert page.locator(".viewer-label").all_inner_texts()[0] == "L1/L2 >99 %"
    names = [
        label.strip()
        for label in page.locator("label:has([data-series])").all_inner_texts()
    ]
    assert names == ["Sagittal T2", "Sagittal T1", "Axial T2", "Axial T2 (2)"]
    for box in page.locator("[data-series], [data-part]").all():
        box.click()
        assert changed(first, view.picture()) > 50, box.evaluate("e => e.outerHTML")
        box.click()
    before = view.picture()
    assert changed(first, before) == 0
    for control, value in (("[data-size]", "4"), ("[data-cut]", "50")):
        page.locator(control).fill(value)
        after = view.picture()
        assert changed(before, after) > 50, control
        before = after
    seen = {}
    for button in page.locator("[data-view]").all():
        button.click()
        after = view.picture()
        assert changed(before, after) > 500, button.inner_text()
        before = after
        seen[button.get_attribute("data-view")] = letters_of(page)
    directions_are_the_patients(seen)
    assert view.is_quiet()


def letters_of(page) -> dict[str, list[float]]:
    """Return where the letters of the directions stand, ``[x, y]`` each."""
    return page.evaluate(
        """() => Object.fromEntries(Array.from(document.querySelectorAll(".viewer-compass span"))
            .map(e => [e.textContent, [e.getBoundingClientRect().x, e.getBoundingClientRect().y]]))"""
    )


def directions_are_the_patients(seen: dict[str, dict[str, list[float]]]) -> None:
    """Front: the patient's right on the left. Side: front on the left. From the feet: as axial images are shown."""
    order = {"front": "R L H F", "side": "A P H F", "feet": "R L A P", "top": "L R A P"}
    for name, letters in order.items():
        place = seen[name]
        left, right, up, down = letters.split()
        assert place[left][0] < place[right][0] - 40
        assert place[up][1] < place[down][1] - 40


def wheel(page, by: int) -> None:
    """Turn the wheel, and wait until the page has heard of it."""
    page.evaluate(
        "() => { window.turned = new Promise(done => addEventListener('wheel', done, {capture: true})); }"
    )
    page.mouse.wheel(0, by)
    page.evaluate("async () => { await window.turned; }")


@pytest.mark.slow
def test_the_view_is_worked_by_mouse_keys_and_wheel(shown) -> None:
    view = shown()
    page = view.page
    page.locator("canvas").focus()
    middle = page.locator("canvas").bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    for key in ("ArrowLeft", "ArrowUp", "+", "-", "ArrowRight", "ArrowDown"):
        before = view.picture()
        page.keyboard.press(key)
        assert changed(before, view.picture()) > 300, key
    before = view.picture()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y + 20, steps=4)
    page.mouse.up()
    turned = view.picture()
    assert changed(before, turned) > 300
    wheel(page, -300)
    zoomed = view.picture()
    assert changed(turned, zoomed) > 300
    page.locator("[data-view=front]").focus()
    wheel(page, 300)  # the page's again
    assert changed(zoomed, view.picture()) == 0
    assert view.is_quiet()


def fits(page) -> None:
    wide, room = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_the_view_fits_and_passes_axe(shown, scheme: str, viewport) -> None:
    view = shown(color_scheme=scheme, viewport=viewport)
    fits(view.page)
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed",
    )
    found = axe.Axe().run(view.page).response["violations"]
    assert [
        (rule["id"], [node["html"][:150] for node in rule["nodes"]][:3])
        for rule in found
    ] == []


def test_in_a_studys_page_it_starts_when_it_is_asked_for(shown) -> None:
    content = study_content(scene=study_scene(a_study(), some_levels()))
    view = shown(page=study_page(content), opened=False, viewport=PHONE)
    fits(view.page)
    assert not view.page.locator("[data-opened]").is_visible()
    assert view.page.locator("canvas").count() == 0
    view.page.get_by_role("button", name="Open the 3-D view").click()
    view.page.wait_for_selector("[data-ready]", timeout=60_000)
    assert (np.abs(view.picture() - (16, 21, 28)).max(axis=2) > 40).mean() > 0.05
    assert view.page.evaluate("document.activeElement.tagName") == "CANVAS"
    fits(view.page)
    assert view.is_quiet()


def test_without_webgl_a_sentence_stands_instead(shown) -> None:
    view = shown(
        opened=False, script="HTMLCanvasElement.prototype.getContext = () => null"
    )
    said = view.page.locator("[data-message]")
    said.wait_for(state="visible")
    assert "no WebGL 2" in said.inner_text()
    for viewport in (PHONE, DESK):
        view.page.set_viewport_size(viewport)
        fits(view.page)
    assert not view.page.locator("[data-opened]").is_visible()
    assert view.is_quiet()


def test_without_javascript_the_page_says_so(shown) -> None:
    view = shown(opened=False, java_script_enabled=False)
    assert "needs JavaScript" in view.page.locator("[data-message]").inner_text()
    assert not view.page.locator("[data-open]").is_visible()
