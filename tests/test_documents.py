"""The documents' own snippets run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(document):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


@pytest.mark.parametrize(
    "document",
    ["README.md", "docs/guidance-explained.md", "docs/text-to-image.md", "docs/diffusers.md"],
)
def test_snippets_run(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": document}
    for code in blocks(document):
        exec(compile(code, document, "exec"), session)  # the snippets are ours
    assert capsys.readouterr().out or document == "docs/text-to-image.md"
