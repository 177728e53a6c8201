"""The exported page in a real browser: it recommends what PyTorch does, asks nobody, and everybody can use it.

METAREC_WEB_RUN names a run to export in place of a small one, METAREC_WEB_SCREENSHOTS a folder for the screenshots;
with a run on ML-1M and ``docs`` they are those of docs/web.md.
"""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.explain import without_each
from client.export.export import Choices
from client.export.web_page import export_web
from client.history import Item, Profile
from client.recommend import recommend, task_of
from metarec_shared.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from metarec_shared.errors import MetaRecError
from metarec_shared.feedback import feedback_levels
from simulations.benchmarks.browser import MILLISECONDS, serving, wait_until_ready
from tests.e2e.web_browser import a_browser, axe_source, need_npm
from tests.exportable import exportable

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")

LIKED = ("Toy Story (1995)", "Matrix, The (1999)", "Bug's Life, A (1998)")
"""What screenshots show as liked, where the catalogue has them."""


@dataclass
class Visit:
    """A visit of the page.

    Attributes:
        page: Playwright's page.
        origin: Where the page came from.
        requests: Addresses that it asked for so far.
        problems: Errors that it did not expect.
    """

    page: Any
    origin: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Load the page, and wait until it is ready."""
        self.page.goto(self.origin)
        wait_until_ready(self.page)

    @property
    def field(self) -> Any:
        return self.page.get_by_role("combobox", name="Search titles")

    def choose(self, title: str) -> None:
        """Like a title by search, with the mouse."""
        self.field.fill(title)
        self.page.get_by_role("option", name=title, exact=True).first.click()
        self.page.get_by_role("button", name=f"Remove {title}", exact=True).wait_for()
        self.wait_until_answered()

    def wait_until_answered(self) -> None:
        self.page.wait_for_selector("#recommended[aria-busy=false]")

    def recommended(self) -> list[str]:
        """Return the titles that are recommended."""
        self.wait_until_answered()
        return list(self.page.locator("#recommendations .title").all_inner_texts())

    def focused(self) -> str:
        """Return what has the focus, by its id or its label."""
        return str(self.page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    run = os.environ.get("METAREC_WEB_RUN")
    return load_checkpoint(Path(run)) if run else exportable()


@pytest.fixture(scope="module")
def titles(checkpoint: Checkpoint) -> tuple[str, ...]:
    return checkpoint.items.catalogue.titles


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported page."""
    need_npm()
    made = tmp_path_factory.mktemp("web")
    save_checkpoint(checkpoint, made / "run")
    try:
        export_web(made / "run", made / "page", Choices())
    except MetaRecError as error:
        if "npm cannot get" in str(error):
            pytest.skip(str(error))
        raise
    return made / "page"


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    with a_browser() as launched:
        yield launched


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Visit]:
    """Return a visit that has not begun; the test fails if the page has problems."""
    with serving(folder) as server, browser.new_context(viewport={"width": 1100, "height": 860}) as context:
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        made = Visit(page, server.url)
        page.on("pageerror", lambda error: made.problems.append(str(error)))
        page.on("console", lambda said: made.problems.append(said.text) if said.type == "error" else None)
        context.on("request", lambda request: made.requests.append(request.url))
        yield made
        assert not made.problems


def test_once_loaded_the_page_asks_nobody_for_anything(browser: Any, folder: Path, titles: tuple[str, ...]) -> None:
    """The server is gone by then, and the network off."""
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        with serving(folder) as server:
            visit = Visit(page, server.url)
            context.on("request", lambda request: visit.requests.append(request.url))
            visit.open()
        assert all(url.startswith(visit.origin) for url in visit.requests), visit.requests
        asked_for = {url.removeprefix(visit.origin).partition("?")[0] for url in visit.requests}
        assert asked_for <= {"", *(path.name for path in folder.iterdir())}
        context.set_offline(True)
        loaded = len(visit.requests)
        before = visit.recommended()
        for position in (1, 4, 7):
            visit.choose(titles[position])
        page.get_by_role("button", name=f"Remove {titles[4]}", exact=True).click()
        assert visit.recommended() != before
        page.get_by_role("button", name="Start over").click()
        assert visit.recommended() == before
        assert visit.requests[loaded:] == []
        kept = "[document.cookie, localStorage.length, sessionStorage.length, location.hash, location.search]"
        assert page.evaluate(kept) == ["", 0, 0, "", ""]
        assert context.cookies() == []


def test_the_page_forbids_itself_to_ask_others(visit: Visit) -> None:
    visit.open()
    refused = visit.page.evaluate(
        """async () => {
          const told = new Promise((tell) => addEventListener("securitypolicyviolation", (event) => tell(event)));
          await fetch("http://127.0.0.1:9/").catch(() => {});
          const { effectiveDirective, blockedURI } = await told;
          return [effectiveDirective, blockedURI];
        }"""
    )
    assert refused == ["connect-src", "http://127.0.0.1:9/"]
    visit.problems.clear()


def test_all_works_by_keyboard_alone_and_is_said(visit: Visit, titles: tuple[str, ...]) -> None:
    visit.open()
    keyboard, title = visit.page.keyboard, titles[3]
    start = visit.recommended()
    keyboard.press("Tab")
    keyboard.press("Enter")  # skips to the search
    assert visit.focused() == "search"
    keyboard.type(without_accents(title).lower())
    visit.page.get_by_role("option", name=title, exact=True).wait_for()
    assert visit.field.get_attribute("aria-expanded") == "true"
    keyboard.press("ArrowDown")
    assert visit.page.locator(f"#{visit.field.get_attribute('aria-activedescendant')}").inner_text() == title
    keyboard.press("Escape")
    assert visit.field.get_attribute("aria-expanded") == "false"
    keyboard.press("ArrowDown")  # opens the list again and is at the first
    keyboard.press("Enter")
    assert visit.focused() == "search"
    adapted = visit.recommended()
    assert title not in adapted != start
    explanations = visit.page.locator(".why").all_inner_texts()
    assert any(text == f"Because you liked {title}" for text in explanations)
    assert all(text.startswith(("Because you liked ", "No one of your")) for text in explanations)
    assert (
        visit.page.get_by_role("status").inner_text().startswith(f"{len(adapted)} recommendations, first {adapted[0]}")
    )
    keyboard.press("Tab")
    if visit.focused() == f"Your rating of {title}":
        keyboard.press("ArrowDown")  # the highest
        visit.page.get_by_role("combobox", name=f"Your rating of {title}").wait_for()
        keyboard.press("Tab")
    assert visit.focused() == f"Remove {title}"
    keyboard.press("Tab")
    assert visit.focused() == "reset"
    keyboard.press("Tab")
    second = visit.recommended()[0]
    assert visit.focused() == f"Like {second}"
    keyboard.press("Space")
    assert second not in visit.recommended()
    assert visit.focused().startswith("Like ")
    assert visit.page.get_by_role("list", name="You like").get_by_role("listitem").count() == 2
    for _ in range(2):
        keyboard.press("Shift+Tab")
    assert visit.focused() == f"Remove {second}"
    keyboard.press("Enter")
    assert visit.focused() == f"Remove {title}"
    keyboard.press("Enter")
    assert visit.focused() == "search"
    assert visit.recommended() == start


def test_the_browser_recommends_and_explains_what_pytorch_does(visit: Visit, checkpoint: Checkpoint) -> None:
    visit.open()
    model, rng, scale = checkpoint.full_model(), np.random.default_rng(11), checkpoint.rating_scale
    items = len(checkpoint.items.catalogue)
    cases = []
    for index in range(80):
        positions = rng.permutation(items)[: index % 13].tolist()
        ratings = [int(rng.integers(1, 6)) if scale and rng.random() < 0.7 else None for _ in positions]
        history = [{"position": at, "rating": rating} for at, rating in zip(positions, ratings, strict=True)]
        cases.append({"history": history, "inTime": bool(index % 2), "explain": index % 3 > 0})
    answers = visit.page.evaluate(
        """(cases) => Promise.all(cases.map(({ history, inTime, explain }) =>
             window.metarec.recommend(history, { k: 10, inTime, explain })))""",
        cases,
    )
    for case, answer in zip(cases, answers, strict=True):
        ratings = np.array([one["rating"] or np.nan for one in case["history"]], dtype=np.float32)
        levels = feedback_levels(ratings, scale).tolist()
        kept = [
            Item(position=one["position"], feedback=level) for one, level in zip(case["history"], levels, strict=True)
        ]
        profile = Profile(items=kept, in_time=case["inTime"])
        expected = recommend(model, profile, 10)
        assert [one["position"] for one in answer] == [at for at, _ in expected]
        assert [one["score"] for one in answer] == pytest.approx([score for _, score in expected], abs=1e-4)
        for one in answer[:2]:
            losses = {reason["position"]: reason["loss"] for reason in one["because"]}
            standings = [reason["standing"] for reason in one["because"]]
            assert standings == sorted(standings, reverse=True)
            if case["explain"] and kept:
                with torch.no_grad():
                    lost = without_each(model, task_of([profile]), model.item_vectors(), one["position"]).tolist()
                assert losses == pytest.approx(dict(zip(positions, lost, strict=True)), abs=5e-4)
            else:
                assert losses == {}


def test_what_makes_no_sense_is_refused_and_holds_up_nothing(visit: Visit, titles: tuple[str, ...]) -> None:
    visit.open()
    told = visit.page.evaluate(
        """async (items) => {
          const { recommend } = window.metarec;
          const asked = [
            recommend([{ position: items }]), recommend([{ position: 0 }, { position: 0 }]), recommend([], { k: 0 }),
            recommend([{ position: 0 }]),
          ];
          return (await Promise.allSettled(asked)).map((one) => one.reason?.message ?? one.value.length);
        }""",
        len(titles),
    )
    assert told[:3] == [
        f"history: got position {len(titles)}, wanted one of a catalogue of {len(titles)} items",
        "history: an item stands in it twice; wanted each once",
        "items to recommend: got 0, wanted at least 1",
    ]
    assert told[3] == 10


def test_a_model_that_cannot_be_loaded_is_said(visit: Visit) -> None:
    visit.page.route("**/model.onnx*", lambda route: route.fulfill(status=404))
    visit.page.goto(visit.origin)
    alert = visit.page.get_by_role("alert")
    alert.wait_for()
    assert "The model could not be loaded: model.onnx" in alert.inner_text()
    assert "the server says 404" in alert.inner_text()
    visit.page.unroute("**/model.onnx*")
    visit.page.get_by_role("button", name="Load the page again").click()
    wait_until_ready(visit.page)
    visit.problems.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing_serious(
    scheme: str, visit: Visit, titles: tuple[str, ...], tmp_path: Path
) -> None:
    source = axe_source(tmp_path)
    visit.page.emulate_media(color_scheme=scheme)
    visit.open()
    visit.page.evaluate(source)
    assert serious(visit.page) == []
    for position in (0, 2):
        visit.choose(titles[position])
    assert serious(visit.page) == []
    visit.field.fill(without_accents(titles[5])[:4])
    visit.page.keyboard.press("ArrowDown")
    assert serious(visit.page) == []
    visit.page.set_viewport_size({"width": 340, "height": 700})
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(visit.page) == []


def test_screenshots(visit: Visit, titles: tuple[str, ...], tmp_path: Path) -> None:
    out = Path(os.environ.get("METAREC_WEB_SCREENSHOTS") or tmp_path)
    visit.open()
    known = [title for title in LIKED if title in titles] or [titles[position] for position in (0, 5, 9)]
    visit.field.fill(known[0].partition(" ")[0])
    visit.page.keyboard.press("ArrowDown")
    visit.page.screenshot(path=out / "web-start.png")
    visit.field.fill("")
    visit.page.emulate_media(color_scheme="dark")
    for title in known:
        visit.choose(title)
    visit.page.screenshot(path=out / "web-recommendations.png")
    for name in ("web-start.png", "web-recommendations.png"):
        assert 5_000 < (out / name).stat().st_size < 200_000


def serious(page: Any) -> list[str]:
    """Return what the checker of accessibility has to say of the page, without trifles."""
    violations = page.evaluate("axe.run().then((found) => found.violations)")
    return [
        f"{one['id']}: {one['help']}: {[node['html'] for node in one['nodes']]}"
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]


def without_accents(text: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
