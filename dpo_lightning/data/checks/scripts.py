"""Scripts of texts by Unicode ranges: which share of the letters is Latin, Hangul, Han and so on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from dpo_lightning.data.readers.invisible_characters import remove_invisible

RANGES = {
    "Latin": "A-Za-zªº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Hangul": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff",
    "Han": "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Greek": "\u0370-\u0373\u0376-\u037d\u037f-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0620-\u064a\u066e-\u06ef\u06fa-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefe",
    "Hebrew": "\u05d0-\u05f2\ufb1d-\ufb4f",
    "Devanagari": "\u0900-\u0963\u0971-\u097f\ua8e0-\ua8ff",
    "Bengali": "\u0980-\u09e5\u09f0-\u09ff",
    "Tamil": "\u0b80-\u0be5\u0bf0-\u0bff",
    "Telugu": "\u0c00-\u0c65\u0c70-\u0c7f",
    "Thai": "\u0e01-\u0e4e",
    "Georgian": "\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2f",
    "Armenian": "\u0531-\u0587",
    "Ethiopic": "\u1200-\u139f",
    "Khmer": "\u1780-\u17d3",
    "Burmese": "\u1000-\u103f",
}
"""Name of a script -> its letters and marks, as parts of a character class."""

RUNS = re.compile("|".join(f"(?P<{name}>[{ranges}]+)" for name, ranges in RANGES.items()))
OTHER_ASCII = bytes(code for code in range(128) if not chr(code).isalpha())
CODE = re.compile(r"```.*?(```|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]+\$", re.DOTALL)
"""Code, addresses and formulas, which are Latin in every language."""

NAMED_LANGUAGE = re.compile(
    "translat|english|korean|japanese|chinese|russian|arabic|hindi|greek|hebrew|thai|영어|영문|한국어|한글|우리말|일본어|"
    "중국어|번역|옮겨|英語|英文|英语|韓国語|韩语|日语|日本語|中文|汉语|中国語|翻訳|翻译|訳して|ロシア語|английск|русск|корейск|"
    "китайск|японск|арабск|перевед|перевест|перевод|ترجم|إنجليزي|الإنجليز|العربية|अनुवाद|अंग्रेज",
    re.IGNORECASE,
)
"""Words of a prompt that asks for another language, or may do so."""

LONGEST = 500
"""Characters of a text that are looked at: its beginning."""

LEAST_LETTERS = 6
"""Letters below which a text has no script of its own: an answer such as `B` or `Paris` fits any language."""

FOREIGN = 0.1
"""Share of letters below which a script does not count as one of a text."""


def count_scripts(text: str) -> Counter[str]:
    """Count the letters of the beginning of a text by script, without those in code, addresses and formulas."""
    text = text[: 2 * LONGEST]
    if "`" in text or "$" in text or "://" in text:
        text = CODE.sub(" ", text)
    text = text[:LONGEST]
    counts: Counter[str] = Counter()
    if text.isascii():
        if letters := len(text.encode().translate(None, OTHER_ASCII)):
            counts["Latin"] = letters
        return counts
    for run in RUNS.finditer(remove_invisible(text)):
        counts[str(run.lastgroup)] += run.end() - run.start()
    return counts


def choose_script(counts: Mapping[str, int]) -> str:
    """Return the script of most letters, with Japanese as Kana; "" for a text of few letters."""
    total = sum(counts.values())
    # A Han character or a syllable of Hangul holds more than a letter.
    if total < LEAST_LETTERS and not (total > 1 and counts.get("Latin", 0) == 0):
        return ""
    if counts.get("Kana", 0) >= FOREIGN * total:
        return "Kana"
    return max(counts, key=lambda name: (counts[name], name))


def differ_in_script(prompt: Mapping[str, int], answer: Mapping[str, int]) -> bool:
    """Whether a prompt and an answer are in different scripts: the main one of each is not one of the other."""
    one, other = choose_script(prompt), choose_script(answer)
    if not one or not other or one == other:
        return False
    return prompt.get(other, 0) < FOREIGN * sum(prompt.values()) and answer.get(one, 0) < FOREIGN * sum(answer.values())
