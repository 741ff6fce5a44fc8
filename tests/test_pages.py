"""What README.md and docs/ tell a reader to run, runs as it stands."""

import re

import keras
import pages
import pytest

HERE = keras.backend.backend()


@pytest.mark.parametrize(
    "page",
    pages.PAGES,
    ids=lambda page: page.relative_to(pages.ROOT).as_posix(),
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    chosen = [b for b in pages.blocks(page) if b.place in (None, HERE)]
    if not chosen:
        pytest.skip("the page has no block for this backend")
    if any("matplotlib" in b.code or "plot" in b.code for b in chosen):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    pages.stand_in(monkeypatch)
    names = {"__name__": "__main__"}
    for block in chosen:
        block.run(names)


def test_every_block_says_where_it_runs_in_words_that_are_known():
    known = {None, "hub", "nowhere", *pages.BACKENDS}
    found = [block for page in pages.PAGES for block in pages.blocks(page)]
    assert {block.place for block in found} <= known
    for page in pages.PAGES:
        # A block that the pattern does not see would be left out unseen.
        text = page.read_text(encoding="utf-8")
        assert len(re.findall("^ *```python", text, re.MULTILINE)) == len(
            pages.blocks(page)
        ), page.name


@pytest.mark.parametrize("backend", pages.BACKENDS)
def test_each_backend_has_a_loop_of_its_own_on_the_page_of_loops(backend):
    (page,) = (p for p in pages.PAGES if p.name == "custom-loops.md")
    assert backend in {block.place for block in pages.blocks(page)}


def test_links_between_pages_lead_somewhere():
    lost = []
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (page.parent / target).exists():
                lost.append(f"{page.name}: {target}")
    assert not lost
