"""Shows the examples of the docstrings as code.

They stand in the docstrings as in Keras' own, under `Example:` and not
indented, which mkdocstrings would take for quotations.
"""

import re

import griffe

_EXAMPLE = re.compile(
    r"^Example:\n(?P<code>>>> .*?)(?=\n\n|\Z)", re.DOTALL | re.M
)


class Examples(griffe.Extension):
    """Fences the examples before a docstring is read."""

    def on_object(self, *, obj, **_):
        """Fence those of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(
                "**Example**\n\n```pycon\n\\g<code>\n```", obj.docstring.value
            )
