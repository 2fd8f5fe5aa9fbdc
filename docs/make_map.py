"""Writes map.md out of the modules' first lines: `python docs/make_map.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dpo_lightning"
HEAD = """\
# The map

<!-- Written by docs/make_map.py from the first lines of the modules: change a docstring there, then run it. -->

A folder for each key of a config. Imports point downwards only; `tests/test_layers.py` checks it.
"""


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def render() -> str:
    """The page: a section for the files at the top, then one for each folder."""
    lines = [HEAD]
    folders = [PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)]
    for folder in folders:
        title = "" if folder == PACKAGE else f"{folder.relative_to(PACKAGE)}/"
        lines += [f"## `dpo_lightning/{title}`\n", f"{first_line(folder / '__init__.py')}\n"]
        lines += ["| file | what |", "|---|---|"]
        lines += [
            f"| `{path.name}` | {first_line(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "map.md").write_text(render(), encoding="utf-8")
