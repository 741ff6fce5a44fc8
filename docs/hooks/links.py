"""Turns links to files beside `docs/` into their names.

On a code host such a link opens the file; the site holds pages only.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#]+)\)")


def on_page_markdown(markdown, page, **_):
    """Replace `[text](../path)` where the file exists; refuse others."""

    def name(link):
        path = link["path"]
        if not (ROOT / path).exists():
            raise FileNotFoundError(
                f"{page.file.src_uri} links to '../{path}', which is not there."
            )
        text = link["text"].strip("`")
        return f"`{path}`" if path.endswith(text) else f"{text} (`{path}`)"

    return _LINK.sub(name, markdown)
