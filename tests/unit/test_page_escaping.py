"""What catalogues, people and models write is only ever words on the pages of a history and of an item."""

from __future__ import annotations

import html
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.report.item import ItemData, PairLine, render_item
from pipeline.report.page import Picture, template
from pipeline.report.trends import Curve, Point, TrendsData, render_trends

HOSTILE = "</title></style><script>alert('x')</script><img src=x onerror=alert(1)>\"'&lt;{{ 7 * 7 }}<!-- é 鞋"


def history(word: str) -> bytes:
    curve = Curve(word, [Point(word, 1.0, word), Point(word, 2.0, word, changed=True)])
    entries = [(word, word, word, word, word, True, word)]
    return render_trends(TrendsData(word, word, entries, [curve]))


def item(word: str) -> bytes:
    picture = Picture(np.zeros((8, 8, 3), np.uint8), word)
    line = PairLine(word, "new", word, word, word, word, word, word, picture, picture)
    return render_item(
        ItemData(
            title=word,
            facts=[(word, word)],
            photos=[(word, picture), (word, None)],
            note=word,
            against=word,
            neighbours=[line],
            refused=[(word, word, word)],
        )
    )


def elements(page: bytes) -> tuple[Counter[tuple[str, tuple[str, ...]]], str]:
    """Return the elements of a page with the names of their attributes, and its text."""
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found[tag, tuple(name for name, _ in attrs)] += 1

        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(page.decode())
    return found, "".join(words)


@pytest.mark.parametrize("page", [history, item])
def test_hostile_words_are_only_words(page: object) -> None:
    assert callable(page)
    (tags, text), (harmless_tags, harmless_text) = (elements(page(word)) for word in (HOSTILE, "harmless"))
    assert tags == harmless_tags
    assert not any(tag == "script" or any(name.startswith("on") for name in names) for tag, names in tags)
    assert text.count(HOSTILE) == harmless_text.count("harmless") > 5
    # The negative control: a page that did not escape would be told from one of harmless words.
    broken = page(HOSTILE).replace(html.escape("<script>").encode(), b"<script>", 1)
    assert elements(broken)[0] != harmless_tags


@pytest.mark.parametrize("page", [history, item])
def test_words_of_two_million_characters_do_not_fill_a_page(page: object) -> None:
    assert callable(page)
    long = page("y" * 2_000_000)
    assert len(long) < len(page("harmless")) + 200_000
    assert b"(2,000,000 characters)" in long


def test_a_page_without_jinja_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # as in an environment for readers alone
    template.cache_clear()
    with pytest.raises(ConfigError, match=r"pages need the package jinja2.*pip install jinja2"):
        history("word")
