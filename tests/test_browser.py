"""What a learner sees: JupyterLab in a real browser, every finished lesson run from top to bottom.

One JupyterLab, started by the course's own command, serves all tests of this module. It works
on a copy of the course, under settings and services of its own. Pictures of what was seen
lie in ``work/screenshots`` afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_cli import free_port

from helpers.settings import NOTEBOOKS, ROOT, WORK
from helpers.skill import REFERENCE, contents

TOKEN = "for-this-test"
SCREENSHOTS = WORK / "screenshots"
SIZE = {"width": 1280, "height": 800}
PATIENCE = 300_000  # ms; for a whole lesson on a machine that has other work too
GROWN = Path("skills/agent-integration")
BY_HAND = 5  # cells that are run one by one before all of them
STEPPED = ("L01", "L02", "L03")  # lessons of which every cell is then run with the keyboard
DARK = ("L01", "L04")  # lessons with widgets and plots that are also looked at in the dark theme

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.xdist_group("browser"),
    # Starting JupyterLab and the browser has limits of its own.
    pytest.mark.timeout(PATIENCE / 1000 + 120, func_only=True),
]


def finished() -> list[str]:
    """Notebooks that are more than a plan."""
    found = []
    for path in sorted(NOTEBOOKS.glob("L*.ipynb")):
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        if metadata.get("course", {}).get("status") != "planned":
            found.append(path.stem)
    return found


LESSONS = finished()


# --- JupyterLab and the browser -----------------------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A copy of the course, as a learner has it who has not begun."""
    course = tmp_path_factory.mktemp("lab") / "course"
    for name in ("helpers", "model", "notebooks", "skills"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, course / name, ignore=_caches)
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copyfile(ROOT / name, course / name)
    shutil.rmtree(course / GROWN, ignore_errors=True)
    return course


@pytest.fixture(scope="module")
def lab(course) -> Iterator[str]:
    """The address of a JupyterLab that ``python3 -m helpers lab`` started."""
    home = course.parent
    own = {
        "COURSE_WORK": home / "work",
        "COURSE_SKILL": course / GROWN,  # tests rehearse in a place of their own otherwise
        "JUPYTER_CONFIG_DIR": home / "config",  # a learner's theme and layout stay as they are
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "IPYTHONDIR": home / "ipython",
    }
    env = {**os.environ, **{name: str(path) for name, path in own.items()}}
    port = free_port()
    log = home / "lab.log"
    helpers = [sys.executable, "-m", "helpers"]
    command = [
        *(*helpers, "lab", "--no-browser", "--port", str(port)),
        f"--IdentityProvider.token={TOKEN}",
        "--expose-app-in-browser",  # lets a test ask for what is not on the screen
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=course, env=env, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/api/status?token={TOKEN}", process, log)
        yield url
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for left in [process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        subprocess.run([*helpers, "down"], cwd=course, env=env, capture_output=True, timeout=60)


_caches = shutil.ignore_patterns(".*", "__pycache__", "checkpoints")


def _wait_for(url: str, process: subprocess.Popen, log: Path, patience: float = 180) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=10).close()
            return
        time.sleep(0.5)
    raise AssertionError("no JupyterLab:\n" + log.read_text(encoding="utf-8", errors="replace"))


@pytest.fixture(scope="module")
def browser(require: Callable[[str], str]) -> Iterator[Browser]:
    """The Chromium that is already there; Playwright's own is never downloaded."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=require("chromium"),
            headless=True,
            # Playwright itself switches most of the background traffic off. Under these rules
            # what is left, and what a page might load from elsewhere, does not get out either.
            args=["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            timeout=120_000,
        )
        yield opened
        opened.close()


@dataclass
class Visit:
    """One browser window, and what it did.

    Attributes:
        page: The window.
        strangers: Addresses outside this machine that it asked for.
        errors: What its scripts raised.
    """

    page: Page
    strangers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1":
            self.strangers.append(url)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A window with a fresh profile."""
    context = browser.new_context(viewport=SIZE)
    context.set_default_timeout(90_000)
    seen = Visit(context.new_page())
    context.on("request", lambda request: seen.note(request.url))
    seen.page.on("websocket", lambda socket: seen.note(socket.url))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    yield seen
    context.close()


# --- the notebook in the window -----------------------------------------------------------

PANEL = "window.jupyterapp.shell.currentWidget"


def open_notebook(page: Page, lab: str, name: str) -> None:
    """Open a notebook as its only document and wait until its kernel can be used."""
    # "reset" forgets the documents of an earlier visit.
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset&token={TOKEN}", timeout=120_000)
    page.wait_for_function(
        f"""name => {{
            const panel = window.jupyterapp && {PANEL};
            return panel?.context?.isReady && panel.context.path.endsWith(name + ".ipynb")
                && panel.sessionContext.session?.kernel?.status === "idle";
        }}""",
        arg=name,
        polling=500,
        timeout=150_000,
    )


def cells(page: Page) -> list[dict[str, Any]]:
    """The cells as they would be saved."""
    return page.evaluate(f"{PANEL}.context.model.toJSON().cells")


def run_like_a_learner(page: Page, step: bool) -> None:
    """The first cells one by one with the keyboard, then all of them; wait for the end.

    Args:
        page: With the notebook.
        step: All of them with the keyboard, too; else from the menu.

    Raises:
        AssertionError: When a cell ends in an error that is not meant to be there.
    """
    code = [cell["cell_type"] == "code" for cell in cells(page)]
    page.locator(".jp-Notebook .jp-Cell").first.click()
    for _ in range(BY_HAND):
        page.keyboard.press("Shift+Enter")
    if step:
        show(page, 0)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        for _ in code[:-1]:
            page.keyboard.press("Shift+Enter")
    else:
        choose(page, "Run", "Run All Cells")
    # The kernel counts on, so these numbers cannot be the ones that the file came with.
    first = sum(code[:BY_HAND]) + 1
    page.wait_for_function(
        f"""numbers => {{
            const cells = {PANEL}.context.model.toJSON().cells.filter(c => c.cell_type === "code");
            if (cells.some(c => !c.metadata.tags?.includes("raises-exception")
                    && c.outputs.some(o => o.output_type === "error"))) return true;
            return {PANEL}.sessionContext.session.kernel.status === "idle"
                && JSON.stringify(cells.map(c => c.execution_count)) === numbers;
        }}""",
        arg=json.dumps(list(range(first, first + sum(code)))).replace(" ", ""),
        polling=500,
        timeout=PATIENCE,
    )
    assert unexpected_errors(cells(page)) == []


def unexpected_errors(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{''.join(cell['source'])}\n-> {output['ename']}: {output['evalue']}"
        for cell in found
        if "raises-exception" not in cell["metadata"].get("tags", [])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]


def choose(page: Page, *names: str) -> None:
    """Click through the menus."""
    for name in names:
        labels = page.locator(".lm-MenuBar-itemLabel, .lm-Menu-itemLabel")  # submenus have no role
        labels.filter(has_text=re.compile(f"^{re.escape(name)}$")).locator("visible=true").click()


def show(page: Page, index: int) -> None:
    """Scroll to a cell."""
    page.evaluate(f"index => {PANEL}.content.scrollToItem(index, 'center')", index)
    page.wait_for_timeout(500)  # scrolling and drawing have no event to wait for


def photograph(page: Page, name: str) -> None:
    """A picture of the whole notebook: the window becomes as long as it is."""
    for _ in range(2):  # what was never on the screen has a guessed height at first
        height = page.evaluate(
            f"""() => {{
                const outer = {PANEL}.content.node.querySelector(".jp-WindowedPanel-outer");
                outer.scrollTop = 0;
                const last = [...outer.querySelectorAll(".jp-Cell")].at(-1);
                return last.getBoundingClientRect().bottom + outer.scrollTop;
            }}"""
        )
        longest = 16_000  # Chromium's limit for a picture
        height = max(SIZE["height"], min(round(height) + 60, longest))
        page.set_viewport_size({**SIZE, "height": height})
        page.wait_for_timeout(1500)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.set_viewport_size(SIZE)


# --- tests --------------------------------------------------------------------------------


def test_lab_opens_on_the_first_lesson(lab, visit):
    page = visit.page
    page.goto(f"{lab}/?token={TOKEN}", timeout=120_000)
    title = page.locator(".jp-Notebook h1").first
    expect(title).to_contain_text("L00", timeout=120_000)
    page.wait_for_timeout(3000)  # announcements and questions come late
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "L00.png")
    assert page.locator(".jp-Dialog").all_inner_texts() == []
    assert page.locator(".Toastify__toast").all_inner_texts() == []
    assert visit.strangers == []


@pytest.mark.parametrize("name", LESSONS, ids=lambda name: name[:3])
def test_lesson_runs_as_a_learner_runs_it(lab, visit, name):
    page = visit.page
    open_notebook(page, lab, name)
    run_like_a_learner(page, name.startswith(STEPPED))
    try:
        draws = drawn(cells(page))
        # Widgets may come from a helper, so the file tells where they are, not the source.
        stored = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        # Self-tests have buttons only where a kernel is.
        assert draws == sorted({*drawn(stored), *tagged(stored, "self-test")})
        for index in draws:
            use_widgets(page, index, name[:3])
        photograph(page, name[:3])
        if name.startswith(DARK):
            assert_readable_in_the_dark(page, name[:3])
    finally:
        # What the lesson started ends with its kernel.
        page.evaluate(f"{PANEL}.sessionContext.shutdown()")
    assert visit.strangers == []
    assert visit.errors == []


def test_the_skill_that_grew_meanwhile_is_the_reference(course, request):
    """The lessons above, from the first to the last, on one skill."""
    ran = [item.name for item in request.session.items if item.name.startswith("test_lesson_runs")]
    if len(ran) < len(LESSONS):
        pytest.skip("not all lessons were run")
    assert contents(course / GROWN) == contents(REFERENCE)


def drawn(found: list[dict[str, Any]]) -> list[int]:
    """The cells that show widgets."""
    return [
        index
        for index, cell in enumerate(found)
        if any("application/vnd.jupyter.widget-view+json" in output.get("data", {})
               for output in cell.get("outputs", []))
    ]  # fmt: skip


def tagged(found: list[dict[str, Any]], tag: str) -> list[int]:
    """The cells that carry a tag."""
    return [n for n, cell in enumerate(found) if tag in cell["metadata"].get("tags", [])]


def use_widgets(page: Page, index: int, name: str) -> None:
    """The widgets of a cell have a size, and answer to the first slider, list or button."""
    show(page, index)
    output = page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea-output")
    widgets = output.locator(".jupyter-widgets").first
    widgets.evaluate("element => element.scrollIntoView({block: 'center'})")
    expect(widgets).to_be_visible()
    box = widgets.bounding_box()
    assert box["width"] > 100 and box["height"] > 20, box
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-widget.png")
    slider, choices = widgets.get_by_role("slider").first, widgets.locator("select").first
    send = widgets.get_by_role("button", name="Send requests")  # the switchboard of L06
    button = send if send.count() else widgets.locator(".widget-toggle-button").first
    before = widgets.inner_text()
    if slider.count():
        slider.focus()
        page.keyboard.press("ArrowRight")
    elif choices.count():
        choices.select_option(index=1)
    elif button.count():
        button.focus()
        page.keyboard.press("Space")
    if slider.count() or choices.count() or button.count():
        page.wait_for_function(
            "([element, before]) => element.innerText !== before",
            arg=[widgets.element_handle(), before],
        )


def assert_readable_in_the_dark(page: Page, name: str) -> None:
    """No text is pale in the dark theme; the light one is back afterwards."""
    for theme, light in (("JupyterLab Dark", "false"), ("JupyterLab Light", "true")):
        choose(page, "Settings", "Theme", theme)
        page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
        page.wait_for_timeout(1000)
        if light == "false":
            photograph(page, f"{name}-dark")
            assert page.evaluate(PALE, 3) == []


# Text whose colour is hard to tell from its ground. WCAG asks for 4.5; JupyterLab's own dark
# theme does not reach that everywhere, so this looks for what nobody could read.
PALE = """least => {
    const number = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = ([r, g, b]) => {
        const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const ground = element => {
        for (; element; element = element.parentElement) {
            const [r, g, b, a = 1] = number(getComputedStyle(element).backgroundColor);
            if (a > 0.5) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const pale = [];
    for (const element of document.querySelectorAll(".jp-Notebook .jp-Cell *")) {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own || !element.checkVisibility()) continue;
        const [a, b] = [number(getComputedStyle(element).color), ground(element)].map(light);
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < least) pale.push(`${contrast.toFixed(1)}: ${element.innerText}`);
    }
    return pale;
}"""


@pytest.mark.skipif(not LESSONS, reason="no lesson is finished yet")
def test_lessons_can_be_read_in_the_dark_theme(lab, visit):
    page = visit.page
    open_notebook(page, lab, LESSONS[0])
    assert_readable_in_the_dark(page, LESSONS[0][:3])
    assert visit.strangers == []
