"""The fonts that a figure takes its characters from."""

from __future__ import annotations

from pathlib import Path

FONTS = ("DejaVu Sans", "NanumGothic", "Noto Sans CJK KR", "Noto Sans CJK JP", "Malgun Gothic", "AppleGothic")
"""Fonts to take characters from, in this order; all but the first have Hangul."""

FILES = ("nanumgothic", "notosanscjk", "malgun", "applegothic")
"""How the names of these fonts' files begin."""


def find_fonts() -> list[str]:
    """Return those of `FONTS` that are installed, after making them known to matplotlib.

    matplotlib searches for fonts once and keeps the list in the user's home, which an Apptainer container, or a second
    machine of a cluster, shares: fonts that only one of them has, or that were installed later, are not in the list.
    """
    from matplotlib import font_manager

    manager = font_manager.fontManager
    listed = {font.fname for font in manager.ttflist}
    for path in map(Path, sorted(font_manager.findSystemFonts())):
        if path.name.lower().startswith(FILES) and str(path) not in listed:
            manager.addfont(path)
    present = {font.name for font in manager.ttflist if Path(font.fname).exists()}
    return [name for name in FONTS if name in present]
