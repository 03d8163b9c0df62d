"""Count the code of the core: without docstrings, blank lines and comments.

python tools/count_core.py            a line for each file, and the sum
python tools/count_core.py src/…      the same of any files

Three counts: lines; statements; tokens, without commas and brackets. The last two do not depend on
how long a line may be, so they compare trees that were formatted in different ways.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "guidestar"
CORE = (
    "core/levels/*.py",
    "core/*.py",
    *(
        f"guidance/{n}.py"
        for n in ("traits", "term", "context", "engine", "groups", "guided", "plan")
    ),
    "guidance/expression.py",
    "sampling/solver.py",
    "sampling/run.py",
)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Count the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and is_docstring(node):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


LAYOUT = frozenset("()[]{},")
"""What a formatter adds and takes away where it breaks lines."""


def is_docstring(node: ast.AST) -> bool:
    """Return whether a node is a text that stands alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def statements(source: str) -> int:
    """Count statements, of every depth."""
    nodes = ast.walk(ast.parse(source))
    return sum(isinstance(node, ast.stmt) and not is_docstring(node) for node in nodes)


def tokens(source: str) -> int:
    """Count names, numbers, texts and operators."""
    texts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and is_docstring(node):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        token.type not in NOT_CODE and token.string not in LAYOUT and token.start[0] not in texts
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def main() -> None:
    """Print the counts of each file, and the sums."""
    files = [Path(name) for name in sys.argv[1:]] or [
        f for pattern in CORE for f in sorted(SRC.glob(pattern))
    ]
    sums = [0, 0, 0]
    print(" lines  statements  tokens")
    for file in files:
        source = file.read_text(encoding="utf-8")
        counts = code_lines(source), statements(source), tokens(source)
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        print(f"{row(counts)}  {file.relative_to(SRC) if file.is_relative_to(SRC) else file}")
    print(f"{row(sums)}  in all")


def row(counts: Sequence[int]) -> str:
    """Lay three counts out in columns."""
    return f"{counts[0]:>6}  {counts[1]:>10}  {counts[2]:>6}"


if __name__ == "__main__":
    main()
