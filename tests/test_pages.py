"""What README.md and docs/ tell a reader to run, runs as it stands."""

import importlib.util
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
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    chosen = [b for b in pages.blocks(page) if b.place in (None, HERE)]
    if importlib.util.find_spec("matplotlib") is None:
        chosen = [b for b in chosen if "plot" not in b.code]
    if not chosen:
        pytest.skip("the page has no block for this backend")
    monkeypatch.chdir(tmp_path)
    pages.stand_in(monkeypatch)
    names = {"__name__": "__main__"}
    for block in chosen:
        block.run(names)
        printed = capsys.readouterr().out
        if block.output is not None:
            assert words(printed) == words(block.output), block.page


def words(text):
    """Leave out the numbers, which differ between backends."""
    return re.findall(r"[^\W\d_]+", text)


def test_every_block_says_where_it_runs_in_words_that_are_known():
    known = {None, "hub", "nowhere", *pages.BACKENDS}
    found = [block for page in pages.PAGES for block in pages.blocks(page)]
    assert {block.place for block in found} <= known
    for page in pages.PAGES:
        # A block that the pattern does not see would be left out unseen.
        seen = [b for b in pages.blocks(page) if b.output is None]
        marks = re.findall("^ *```python", pages.prose(page), re.MULTILINE)
        assert len(marks) == len(seen), page.name


@pytest.mark.parametrize("backend", pages.BACKENDS)
def test_each_backend_has_a_loop_of_its_own_on_the_page_of_loops(backend):
    (page,) = (p for p in pages.PAGES if p.name == "custom-loops.md")
    assert backend in {block.place for block in pages.blocks(page)}


def test_links_between_pages_lead_somewhere():
    lost = []
    for page in pages.PAGES:
        for target in re.findall(
            r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", pages.prose(page)
        ):
            if not (page.parent / target).exists():
                lost.append(f"{page.name}: {target}")
    assert not lost
