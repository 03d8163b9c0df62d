"""What the site changes in the pages, which are also read as plain Markdown in the repository."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files outside the documents into their names; the site has no such pages."""
    return _OUTSIDE.sub(
        lambda m: f"{m[1]} (`{m[2]}`)" if m[1].strip("`") != m[2] else f"`{m[2]}`", markdown
    )
