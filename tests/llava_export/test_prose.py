"""The prose that quantization is measured on: paragraphs of pages, dealt into parts that share nothing."""

from __future__ import annotations

from itertools import combinations

from benchmarks.prose import PACKAGES, SHORTEST, deal, documents, paragraphs

LONG = "word " * (SHORTEST // 5 + 1)


def test_paragraphs_are_prose_without_markup_and_code():
    page = f"""<html><head><style>p {LONG}</style></head><body><div class="section para">First <em>of</em>
      two &amp; more. {LONG}<pre>{LONG}</pre></div><p>A caption.</p><ul><li><p>In a list. {LONG}</p></li></ul>
      <table><tr><td><p>In a table. {LONG}</p></td></tr></table><div class="menu">{LONG}</div><p>Last. {LONG}"""
    found = paragraphs(page)
    assert [text.removesuffix(LONG.strip()) for text in found] == ["First of two & more. ", "In a list. ", "Last. "]


def test_parts_share_no_paragraph_and_have_about_the_same_length():
    pages = [[f"{i}, {j} {LONG}" for j in range(1 + i % 4)] + [f"the same on all pages {LONG}"] for i in range(40)]
    parts = deal(pages)
    assert parts == deal(pages)  # no chance is involved
    for one, other in combinations(parts.values(), 2):
        assert not set(one) & set(other)
    assert sum(map(len, parts.values())) == len({text for page in pages for text in page})
    sizes = [sum(map(len, part)) for part in parts.values()]
    assert max(sizes) < 1.2 * min(sizes)


def test_pages_in_other_languages_are_left_out(tmp_path):
    for name in ("index.html", "index.de.html", "index.zh-cn.html", "index.en.html", "python3.11.html"):
        page = tmp_path / "debian-faq" / PACKAGES["debian-faq"].replace("*.html", name)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"<p>{name} {LONG}</p>")
    assert [page[0].split()[0] for page in documents(tmp_path)] == ["index.en.html", "index.html", "python3.11.html"]
