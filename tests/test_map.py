"""docs/map.md is what the modules' first lines make it."""

import importlib.util

from support.toy_setup import ROOT

SPEC = importlib.util.spec_from_file_location("make_map", ROOT / "docs" / "make_map.py")
make_map = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_map)


def test_the_map_is_complete_and_true():
    assert (ROOT / "docs" / "map.md").read_text(encoding="utf-8") == make_map.render()


def test_every_module_has_a_first_line_and_a_row():
    rows = make_map.render()
    for path in make_map.PACKAGE.rglob("*.py"):
        assert make_map.first_line(path), path
        assert path.name == "__init__.py" or f"| `{path.name}` | {make_map.first_line(path)} |" in rows
