"""Reference pages: a line that begins with `name: ` explains a parameter, and becomes an item."""

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^((?:`?\w+`?)(?:, `?\w+`?)*): (?=\S)")


def itemised(text: str) -> str:
    """The text with such lines, and the lines that go on after them, as a Markdown list."""
    first, *lines = text.splitlines()
    result, inside = [first], False
    for line in lines:
        if _ITEM.match(line):
            result += ([] if inside else [""]) + [
                _ITEM.sub(lambda found: f"- **{found[1].replace('`', '')}**: ", line)
            ]
            inside = True
        elif not line.strip():
            inside = False
            result.append(line)
        elif (
            inside and (line[:1].isupper() or line[:1] == "`") and result[-1].rstrip().endswith(".")
        ):
            result += ["", line]
            inside = False
        else:
            result.append(f"  {line}" if inside else line)
    return "\n".join(result)


class Itemised(griffe.Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = itemised(obj.docstring.value)
