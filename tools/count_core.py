"""Count the code lines of the core: without docstrings, blank lines and comments.

python tools/count_core.py            a line for each file, and the sum
python tools/count_core.py src/…      the same of any files
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "guidestar"
CORE = (
    "core/levels/*.py",
    "core/*.py",
    *(
        f"guidance/{n}.py"
        for n in ("term", "context", "engine", "groups", "arguments", "guided", "plan")
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
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print the code lines of each file, and the sum."""
    files = [Path(name) for name in sys.argv[1:]] or [
        f for pattern in CORE for f in sorted(SRC.glob(pattern))
    ]
    counts = {file: code_lines(file.read_text()) for file in files}
    for file, count in counts.items():
        print(f"{count:>6}  {file.relative_to(SRC) if file.is_relative_to(SRC) else file}")
    print(f"{sum(counts.values()):>6}  in all")


if __name__ == "__main__":
    main()
