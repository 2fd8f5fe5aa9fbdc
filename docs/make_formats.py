"""Writes formats.md out of the table of formats and formats.template.md: `python docs/make_formats.py`."""

from pathlib import Path

from dpo_lightning.data.formats.recognition import FORMATS

DOCS = Path(__file__).parent


def render() -> str:
    """The page, with a row for each format: its name, kind, and its summary."""
    rows = [(known.name, known.kind, known.summarize()) for known in FORMATS]
    table = "\n".join(f"| `{name}` | {kind} | {line.replace('|', chr(92) + '|')} |" for name, kind, line in rows)
    return (DOCS / "formats.template.md").read_text(encoding="utf-8").format(table=table)


if __name__ == "__main__":
    (DOCS / "formats.md").write_text(render(), encoding="utf-8")
