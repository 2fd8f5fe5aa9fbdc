"""docs/formats.md is what the table of formats makes it."""

import importlib.util

from support.toy_setup import ROOT

SPEC = importlib.util.spec_from_file_location("make_formats", ROOT / "docs" / "make_formats.py")
make_formats = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_formats)


def test_the_page_lists_every_format():
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert page == make_formats.render()
    for known in make_formats.FORMATS:
        assert f"| `{known.name}` | {known.kind} |" in page
