"""What README.md and docs/ say about KerasHub runs as it stands."""

import keras_hub
import pages
import pytest


@pytest.mark.parametrize(
    "page",
    [p for p in pages.PAGES if "hub" in {b.place for b in pages.blocks(p)}],
    ids=lambda page: page.relative_to(pages.ROOT).as_posix(),
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.stand_in(monkeypatch)
    task = keras_hub.models.TextClassifier
    monkeypatch.setattr(task, "from_preset", classmethod(pages.small_preset))
    names = {"__name__": "__main__"}
    for block in pages.blocks(page):
        if block.place == "hub":
            block.run(names)
