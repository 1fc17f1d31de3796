"""What the pages of real runs look like: order, sizes, breaks of lines, numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.report.runs import ARTEFACTS, Open, Watched
from tests.report.test_pages import KINDS

pytestmark = pytest.mark.whole_run

Seen = Callable[[str], Watched]
TALLEST = 3000
"""The most pixels of the section of anchors on a page as wide as a telephone."""
NUMBER = r"[+-]?[\d,]*\d(\.\d+)?( - \d+\.\d)?|\d+(:\d\d){1,2}|-"
"""A cell of a number: a count, a percentage, an interval, a duration, or nothing."""

CARDS = """() => Object.fromEntries([...document.querySelectorAll('#summary h3')]
    .filter(head => head.nextElementSibling.matches('.cards'))
    .map(head => [head.textContent, [...head.nextElementSibling.children].map(card =>
        [card.querySelector('dt').textContent, ...[...card.querySelectorAll('dd')]
            .map(text => text.textContent.replaceAll('\\u00a0', ' '))])]))"""
"""A script that returns the cards of the summary by the heading over them."""

BROKEN = """() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const broken = [];
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (node.parentElement.closest('script, pre, svg, option')) continue;
        for (const word of node.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            const tops = [...range.getClientRects()].filter(b => b.width > 0.5).map(b => b.top);
            if (Math.max(...tops) - Math.min(...tops) > 8) broken.push(word[0]);
        }
    }
    return broken;
}"""
"""A script that returns the runs of letters and digits that stand in several lines."""

TABLES = """() => [...document.querySelectorAll('table')].map(table => {
    const of = (cells) => [...cells].map(c => [c.textContent, getComputedStyle(c).textAlign]);
    return [of(table.querySelectorAll('th')),
            [...table.querySelectorAll('tbody tr')].map(row => of(row.children))];
})"""
"""A script that returns the heads and the rows of all tables, each cell with its alignment."""

SCALES = """() => {
    const { xaxis, yaxis } = document.querySelector('[data-chart=map]')._fullLayout;
    return [xaxis, yaxis].map(axis => axis._length / (axis.range[1] - axis.range[0]));
}"""
"""A script that returns how many pixels one unit of the map takes along each axis."""


def test_cards_say_first_what_was_learned_then_what_it_cost(seen: Seen) -> None:
    cards = seen("labelled").page.evaluate(CARDS)
    assert list(cards) == ["Learned", "Cost"]
    learned = {name: texts for name, *texts in cards["Learned"]}
    assert [*learned][:2] == ["kNN", "bank-kNN"]
    assert {"consistency", "anchors", "loss"} <= learned.keys()
    share, random, pixels, when = learned["kNN"]
    assert re.fullmatch(r"\d+\.\d %", share)
    gain = r"\+\d+\.\d over {0}|\d+\.\d below {0}|equal to {0}"
    assert re.fullmatch(gain.format("the untrained network"), random)
    assert re.fullmatch(gain.format("raw pixels"), pixels)
    assert when == "after round 2"
    costs = [name for name, *_ in cards["Cost"]]
    assert costs == ["training time", "images/s", "waiting for data", "memory"]


def test_without_labels_cards_say_what_there_is(seen: Seen) -> None:
    cards = seen("unlabelled").page.evaluate(CARDS)
    assert [name for name, *_ in cards["Learned"]] == ["anchors", "entropy of neighbours", "loss"]
    assert all(value not in ("", "-") for _, value, *_ in [*cards["Learned"], *cards["Cost"]])
    heads = seen("unlabelled").page.locator("#summary th").all_text_contents()
    assert heads == ["after", "anchors", "time"]


def test_figures_of_epochs_are_drawn_where_they_were_measured(seen: Seen) -> None:
    page = seen("measured").page
    names = "key => document.querySelector(`[data-chart=${key}]`).data.map(t => t.name)"
    assert page.evaluate(names, "bank-knn") == ["bank-kNN", "linear probe"]
    assert page.evaluate(names, "signs") == ["spread", "mean norm", "neighbour entropy"]
    assert "labelled: linear probe" in page.evaluate(names, "accuracy")
    cards = page.evaluate(CARDS)
    assert ["linear probe", "62.5 %", "after round 2"] in cards["Learned"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_menu_names_the_sections_as_they_are_named(seen: Seen, kind: str) -> None:
    page = seen(kind).page
    links = page.eval_on_selector_all("nav li a", "all => all.map(a => [a.hash, a.textContent])")
    heads = page.eval_on_selector_all(
        "section", "all => all.map(s => ['#' + s.id, s.querySelector('h2').textContent])"
    )
    assert links == heads


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "compared"])
@pytest.mark.parametrize("width", [1200, 400])
def test_no_word_stands_in_two_lines(
    pages: dict[str, Path], look: Open, kind: str, width: int
) -> None:
    watched = look(pages[kind], width)
    watched.scroll_through()
    watched.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert watched.page.evaluate(BROKEN) == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_name_is_shortened_and_whole_in_its_title(seen: Seen) -> None:
    page = seen("unlabelled").page
    shortened = page.locator("#anchors figure", has_text="…")
    assert shortened.count() > 0
    for figure in shortened.all():
        caption, title = figure.locator("figcaption").text_content(), figure.get_attribute("title")
        assert re.match(r"IMG_…\w+_final\.png", str(caption))
        assert re.search(r"IMG_2024-05-17_holiday-\S+_final\.png", str(title))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_aligned_right_and_texts_left(seen: Seen, kind: str) -> None:
    tables = seen(kind).page.evaluate(TABLES)
    assert tables
    numbers = 0
    for heads, rows in tables:
        for at, (head, align) in enumerate(heads):
            cells = [row[at] for row in rows]
            is_number = all(re.fullmatch(NUMBER, text) for text, _ in cells)
            expected = "right" if is_number else "left"
            assert {align, *(cell for _, cell in cells)} == {expected}, head
            numbers += is_number
    assert numbers > 5


def test_numbers_have_one_form(seen: Seen) -> None:
    """Percentages have one decimal, and thousands a comma."""
    page = seen("compared").page
    texts = page.locator("main :is(dd, td, figcaption, p)").all_inner_texts()
    percentages = re.findall(r"([\d.,]+)[\s\u00a0]%", "\n".join(texts))
    assert len(percentages) > 3
    assert all(re.fullmatch(r"[\d,]+\.\d", number) for number in percentages)
    for _, rows in page.evaluate(TABLES)[:-1]:  # the last one is the environment
        assert not [text for row in rows for text, _ in row if re.fullmatch(r"\d{4,}", text)]


def test_the_map_opens_with_umap_at_one_scale(pages: dict[str, Path], look: Open) -> None:
    watched = look(pages["labelled"])
    watched.scroll_through()
    page = watched.page
    options = page.locator("[data-views=map] option").all_text_contents()
    assert options == ["UMAP", "PCA"]
    assert page.input_value("[data-views=map]") == "0"
    assert_one_scale(page)
    for width in (400, 1000):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            "w => document.querySelector('[data-chart=map]')._fullLayout.width <= w", arg=width
        )
        page.wait_for_timeout(300)
        assert_one_scale(page)
    page.select_option("[data-views=map]", "1")
    page.wait_for_timeout(300)
    assert_one_scale(page)


def assert_one_scale(page: Page) -> None:
    x, y = page.evaluate(SCALES)
    assert x == pytest.approx(y, rel=0.01)


def test_the_learning_rate_is_drawn_in_steps(seen: Seen) -> None:
    chart = "document.querySelector('[data-chart=lr]').data[0]"
    page = seen("labelled").page
    assert page.evaluate(f"{chart}.line.shape") == "hv"
    assert page.evaluate(f"{chart}.x") == [0, 1, 2, 3, 4, 5, 6]
    assert page.evaluate(f"{chart}.y") == [0.03, 0.003] * 3 + [0.003]


def test_no_mistake_is_shown_twice(seen: Seen) -> None:
    page = seen("labelled").page
    shown = page.eval_on_selector_all(
        "#mistakes li > figure:first-child img", "all => all.map(i => i.src + i.alt)"
    )
    assert len(shown) == len(set(shown)) > 0


def shown_anchors(page: Page) -> list[str]:
    found: list[str] = page.eval_on_selector_all("#hoods img", "all => all.map(i => i.alt)")
    return found


def test_anchors_are_shown_a_page_at_a_time(pages: dict[str, Path], look: Open) -> None:
    """By keyboard, and by the address."""
    page = look(pages["labelled"], 400).page
    assert page.locator("#hoods li").count() == 10
    assert page.evaluate("document.querySelector('#anchors').offsetHeight") < TALLEST
    first = shown_anchors(page)
    page.locator("#previous").focus()
    page.keyboard.press("Enter")
    assert shown_anchors(page) == first
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    second = shown_anchors(page)
    assert second
    assert second != first
    assert page.url.endswith("#anchors-2")
    assert re.fullmatch(r"11 to \d+ of \d+ anchors", str(page.locator("#count").text_content()))
    page.keyboard.press("Enter")  # there is no third page, and the focus stays
    assert shown_anchors(page) == second
    assert page.evaluate("document.activeElement.id") == "next"
    page.locator("#previous").press("Enter")
    assert shown_anchors(page) == first
    elsewhere = look(f"file://{pages['labelled']}#anchors-2", 400).page
    assert shown_anchors(elsewhere) == second
    assert elsewhere.evaluate("scrollY") > 1000
    page.evaluate("location.hash = 'anchors-999'")  # there are two
    expect(page.locator("#by-page")).to_have_value("2")
    page.evaluate("location.hash = 'anchors-1'")
    expect(page.locator("#by-page")).to_have_value("1")


def test_a_printed_page_shows_the_first_anchors(pages: dict[str, Path], look: Open) -> None:
    watched = look(pages["labelled"])
    watched.wait_for_charts()
    page = watched.page
    first = shown_anchors(page)
    page.click("#next")
    second = shown_anchors(page)
    assert second != first
    images = "[...document.querySelectorAll('#hoods img')].map(i => i.alt)"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {images} }})")
    ARTEFACTS.mkdir(exist_ok=True)
    page.pdf(path=ARTEFACTS / "second-page.pdf")
    assert page.evaluate("printed") == first
    page.emulate_media(media="print")
    assert not any(part.is_visible() for part in page.locator("nav, #filters, #preview").all())
    assert shown_anchors(page) == second


def images_of(page: Page, selector: str) -> list[dict[str, Any]]:
    script = """all => all.map(i => ({ width: i.naturalWidth, height: i.naturalHeight,
        rendering: getComputedStyle(i).imageRendering }))"""
    found: list[dict[str, Any]] = page.eval_on_selector_all(selector, script)
    return found


def test_small_images_are_crisp_and_photos_have_their_own_pixels(seen: Seen) -> None:
    """The network sees both at 32 x 32 pixels."""
    small = images_of(seen("labelled").page, ":is(#hoods, #hubs, #mistakes) img")
    assert small
    assert all(one == {"width": 48, "height": 48, "rendering": "pixelated"} for one in small)
    large = images_of(seen("unlabelled").page, ":is(#hoods, #hubs) img")
    assert large
    assert all(one == {"width": 104, "height": 69, "rendering": "auto"} for one in large)
