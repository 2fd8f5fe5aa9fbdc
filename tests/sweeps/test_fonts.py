"""Fonts of figures, where matplotlib's own list of them, kept in the home, is of another machine or of another day."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import font_manager

CODE = """
import json, logging
logging.disable()
from matplotlib import font_manager
if {outdated}:
    # As when the list was written where there is no Hangul, and its files lay elsewhere.
    kept = [font for font in font_manager.fontManager.ttflist if "Nanum" not in font.name]
    font_manager.fontManager.ttflist = kept
    font_manager.json_dump(font_manager.fontManager, {path!r})
else:
    from dpo_lightning.sweeps.plots import plot_style
    from matplotlib import rcParams
    with plot_style():
        fonts = rcParams["font.family"]
    print(json.dumps([fonts, font_manager.findfont("NanumGothic", fallback_to_default=False)]))
"""


def run(folder: Path, **values: object) -> str:
    command = [sys.executable, "-c", CODE.format(**values)]
    environment = {"MPLCONFIGDIR": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300).stdout


def test_fonts_that_a_stored_list_lacks_are_found(tmp_path):
    if not any("NanumGothic" in path for path in font_manager.findSystemFonts()):
        pytest.skip("needs the font NanumGothic (Debian package fonts-nanum)")
    run(tmp_path, outdated=False, path="")
    (path,) = tmp_path.glob("fontlist-*.json")
    run(tmp_path, outdated=True, path=str(path))
    assert "Nanum" not in path.read_text(encoding="utf-8")
    fonts, file = json.loads(run(tmp_path, outdated=False, path=""))
    assert fonts[:2] == ["DejaVu Sans", "NanumGothic"]
    assert Path(file).is_file()


def test_fonts_whose_files_are_missing_are_left_out(tmp_path, monkeypatch):
    from dpo_lightning.sweeps.fonts import find_fonts

    entry = font_manager.FontEntry(fname=str(tmp_path / "gone.ttf"), name="Malgun Gothic")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, entry])
    assert "Malgun Gothic" not in find_fonts()
    assert find_fonts()[0] == "DejaVu Sans"
