"""The pages of real runs in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from and_dist.utils.formatting import as_text
from tests.report.runs import ARTEFACTS, CLASSES, FILES, Open, Watched

pytestmark = pytest.mark.whole_run

Seen = Callable[[str], Watched]
KINDS = ("labelled", "unlabelled", "resumed", "compared", "rival")
TRAINING = {"loss", "lr", "speed", "wait", "map", "time-line"}
CHARTS = {
    "labelled": TRAINING | {"bank-knn", "accuracy", "pairs", "consistency", "entropy"},
    "compared": TRAINING | {"bank-knn", "accuracy", "pairs", "consistency", "entropy"},
    "resumed": TRAINING | {"accuracy", "pairs", "consistency", "entropy"},
    "unlabelled": TRAINING | {"pairs", "entropy"},
    "rival": TRAINING | {"bank-knn", "accuracy"},
}
WHERE_MEASURED = {"signs"}
"""Charts of figures that a run may have or lack."""
MOST_BYTES = 15_000_000
NAME = "e => e.id || e.dataset.views || e.dataset.chart || e.getAttribute('href') || e.tagName"
"""What to call an element."""


LEADING_OUT = """[...document.querySelectorAll('*')].flatMap(element =>
    ['href', 'xlink:href', 'src', 'action', 'formaction', 'data', 'srcset', 'ping', 'poster']
        .filter(name => element.hasAttribute(name)).map(name => element.getAttribute(name)))"""
"""A script that returns the targets of all elements of a page."""

NO_FRAMES = """
    window.requestAnimationFrame = () => 0;
    window.requestIdleCallback = (call, options) => setTimeout(call, options?.timeout ?? 1e9);
    window.IntersectionObserver = class { observe() {} unobserve() {} };
"""
"""A script that keeps from a page what it gets only while it is seen."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_everything_is_there_and_nothing_leaves(
    pages: dict[str, Path], look: Open, seen: Seen, kind: str, width: int, scheme: str
) -> None:
    assert pages[kind].stat().st_size < MOST_BYTES
    if scheme == "light":
        watched = seen(kind)
    else:
        watched = look(pages[kind], width, scheme)
        watched.scroll_through()
    page = watched.page
    shown = page.eval_on_selector_all(".chart", "all => all.map(c => c.dataset.chart)")
    assert set(shown) - WHERE_MEASURED == CHARTS[kind]
    assert page.locator(".chart .main-svg").count() >= len(shown)
    lines = page.eval_on_selector_all(
        ".chart", "all => all.map(c => c.querySelectorAll('path, .point').length)"
    )
    assert min(lines) > 0
    assert [url for url in watched.requests if not url.startswith("data:")] == [
        f"file://{pages[kind]}"
    ]
    assert watched.complaints == []
    places = page.evaluate(LEADING_OUT)
    assert places
    assert [place for place in places if not place.startswith(("#", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(251, 251, 250)" if scheme == "light" else "rgb(21, 23, 26)"
    )
    watched.keep(f"{kind}-{width}-{scheme}")


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_markup_are_text(seen: Seen, kind: str) -> None:
    page = seen(kind).page
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.locator("body b, svg b, img[src='x']").count() == 0
    if kind in ("labelled", "compared"):
        legend = page.locator("[data-chart=map] .legendtext").all_text_contents()
        assert {*CLASSES} <= {*legend}
        options = page.locator("#by-class option").all_text_contents()
        assert {*CLASSES} <= {*options}
    if kind == "unlabelled":
        alts = " ".join(alts_of_all_pages(page))
        for name in FILES:
            shown = re.escape(as_text(name)).replace(r"\{\}", r"\d+")
            assert re.search(shown, alts), name


def alts_of_all_pages(page: Page) -> list[str]:
    shown = "all => all.map(i => i.alt)"
    alts: list[str] = page.eval_on_selector_all("#hoods img", shown)
    later = page.locator("#by-page option").all_text_contents()[1:]
    for number in later:
        page.select_option("#by-page", number)
        alts += page.eval_on_selector_all("#hoods img", shown)
    if later:
        page.select_option("#by-page", "1")
    return alts


def test_filters_show_what_they_say(pages: dict[str, Path], look: Open) -> None:
    page = look(pages["labelled"]).page
    everything = int(str(page.locator("#count").text_content()).split()[4])
    assert page.locator("#count").text_content() == f"1 to 10 of {everything} anchors"
    page.select_option("#by-class", CLASSES[2])
    captions = page.locator("#hoods li > figure:first-child figcaption").all_text_contents()
    assert 0 < len(captions) < everything
    assert all(caption.startswith(CLASSES[2]) for caption in captions)
    page.select_option("#by-band", "low")
    captions = page.locator("#hoods li > figure:first-child figcaption").all_text_contents()
    assert captions
    assert all("low entropy" in caption for caption in captions)
    page.select_option("#by-band", "")
    page.select_option("#by-class", "")
    of_round_2 = alts_of_all_pages(page)
    assert len(of_round_2) == 3 * everything
    page.select_option("#by-round", "1")
    assert page.locator("#count").text_content() != f"1 to 10 of {everything} anchors"
    assert alts_of_all_pages(page) != of_round_2
    page.select_option("#by-round", "2")
    assert alts_of_all_pages(page) == of_round_2
    assert page.locator("#hubs li").count() > 0


def test_marks_say_whether_a_neighbour_is_of_the_class(seen: Seen) -> None:
    """Against the alternative texts, which name both classes."""
    page = seen("labelled").page
    for hood in page.locator("#hoods li").all():
        anchor, *others = [image.get_attribute("alt") for image in hood.locator("img").all()]
        marks = hood.locator(".near span").all_text_contents()
        assert len(marks) == len(others) == 2
        label = next(name for name in CLASSES if str(anchor).startswith(f"anchor: {name}"))
        for other, mark in zip(others, marks, strict=True):
            is_same = str(other).startswith(f"neighbour: {label}")
            assert mark.startswith("✓ same" if is_same else "✗ ")


def test_without_labels_nothing_is_marked(seen: Seen) -> None:
    page = seen("unlabelled").page
    assert page.locator(".same, .other").count() == 0
    assert not page.locator("#class-label").is_visible()
    assert "no labels" in str(page.locator("#summary .note").first.text_content())


def test_the_map_is_walked_by_keyboard_and_by_mouse(pages: dict[str, Path], look: Open) -> None:
    watched = look(pages["labelled"])
    watched.scroll_through()
    page = watched.page
    page.locator("[data-chart=map]").focus()
    said = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        said.append(page.locator("#preview span").text_content())
    assert len(set(said)) == 3
    assert all(any(str(text).startswith(name) for name in CLASSES) for text in said)
    assert page.locator("#preview img").is_visible()
    assert str(page.locator("#preview img").get_attribute("src")).startswith("data:image/webp")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#preview span").text_content() == said[1]
    page.locator("[data-chart=map] .point").nth(5).hover(force=True)
    page.wait_for_function(
        "before => document.querySelector('#preview span').textContent !== before", arg=said[1]
    )


def test_rounds_of_the_histogram_are_chosen(pages: dict[str, Path], look: Open) -> None:
    watched = look(pages["labelled"])
    watched.scroll_through()
    visible = "document.querySelector('[data-chart=entropy]').data.map(t => t.visible)"
    assert watched.page.evaluate(visible) == [False, False, True, True]
    watched.page.select_option("[data-views=entropy]", "0")
    watched.page.wait_for_function(f"{visible}[0] === true")
    assert watched.page.evaluate(visible) == [True, True, False, False]
    cuts = "document.querySelector('[data-chart=entropy]').layout.shapes.map(s => s.x0)"
    assert len(watched.page.evaluate(cuts)) == 1


def test_all_of_it_is_reached_by_keyboard(pages: dict[str, Path], look: Open) -> None:
    page = look(pages["labelled"]).page
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"({NAME})(document.activeElement)"))
    assert {"#summary", "theme", "entropy", "map"} <= reached
    assert {"by-round", "by-band", "by-class", "by-page", "previous", "next"} <= reached
    assert {"loss", "accuracy", "SUMMARY", "PRE"} & reached >= {"loss", "accuracy", "SUMMARY"}
    page.locator("#theme").focus()
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") != before


def test_pictures_and_charts_say_in_words_what_they_show(seen: Seen) -> None:
    page = seen("labelled").page
    alts = page.eval_on_selector_all("main img:not([hidden])", "all => all.map(i => i.alt)")
    assert len(alts) > 50
    assert all(alts)
    labels = page.eval_on_selector_all(".chart", "all => all.map(c => c.ariaLabel)")
    assert all(re.search(r"\d", label) for label in labels)
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


def test_attention_has_a_picture_a_round(seen: Seen) -> None:
    page = seen("labelled").page
    lines = page.locator(".attended").count()
    assert lines >= 3
    assert page.locator(".attended").first.locator("img").count() == 2 + 3
    sizes = page.eval_on_selector_all(".attended img", "all => all.map(i => i.naturalWidth)")
    assert min(sizes) > 0


def test_mistakes_are_mistakes(seen: Seen) -> None:
    page = seen("labelled").page
    for caption in page.locator("#mistakes li > figure:first-child figcaption").all():
        label, taken = str(caption.inner_text()).splitlines()[:2]
        assert taken.startswith("✗ taken for ")
        assert taken.removeprefix("✗ taken for ") != label


def test_restarts_are_told(seen: Seen) -> None:
    page = seen("resumed").page
    told = str(page.locator("#time-line table").text_content())
    assert "ended without a word" in told
    assert "SIGTERM, saved as r" in told
    assert "start 3: 1 rank(s) on cpu" in told
    assert re.search(r"start 2: .*, from r\d\d-e\d{4}", told)
    assert told.count("started") == 3


def test_a_page_that_is_printed_has_all_charts(pages: dict[str, Path], look: Open) -> None:
    """Also those that nobody has scrolled to."""
    watched = look(pages["labelled"])
    watched.wait_for_charts()
    assert watched.page.evaluate("scrollY") == 0
    ARTEFACTS.mkdir(exist_ok=True)
    watched.page.pdf(path=ARTEFACTS / "labelled.pdf")


def test_a_tab_that_nobody_sees_draws_its_charts(pages: dict[str, Path], chromium: Browser) -> None:
    """Such a tab has no frames, and an observer of it is told nothing."""
    page = chromium.new_page()
    page.add_init_script(NO_FRAMES)
    page.goto(f"file://{pages['labelled']}")
    Watched(page).wait_for_charts()
    assert page.locator(".chart .main-svg").count() >= len(CHARTS["labelled"])
    page.close()


def test_compared_runs_stand_beside_each_other(seen: Seen) -> None:
    page = seen("compared").page
    names = page.evaluate("document.querySelector('[data-chart=loss]').data.map(t => t.name)")
    assert names == ["labelled", "rival"]
    text = str(page.locator("#summary").text_content())
    assert "Runs beside each other" in text
    assert re.search(r"rival\s*method\s*and\s*instance", text)


@pytest.mark.timed
def test_it_opens_in_a_second(
    pages: dict[str, Path], look: Open, at_most: Callable[[float], float]
) -> None:
    """Words, tables and neighbourhoods; charts follow. The best of three: others want cores too."""
    opened, drawn = [], []
    for _ in range(3):
        page = look(pages["labelled"]).page
        timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        opened.append(page.evaluate(timing) / 1000)
        assert page.locator("#hoods li").count() > 0
        page.wait_for_selector("#summary .chart .main-svg")
        drawn.append(page.evaluate("performance.now()") / 1000)
    print(f"opened in {min(opened):.2f} s, first chart after {min(drawn):.2f} s")
    assert min(opened) < at_most(1)
    assert min(drawn) < at_most(3)
