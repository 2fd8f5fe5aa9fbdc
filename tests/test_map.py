"""The README's map of files says what the modules' first lines say."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def first_lines():
    """Module path -> first line of its docstring, for every module of the package."""
    package = ROOT / "dpo_lightning"
    return {
        str(path.relative_to(package)): ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        for path in sorted(package.rglob("*.py"))
    }


def test_the_map_is_complete_and_true():
    """Each module has its line, and no line is without a module."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == first_lines()
