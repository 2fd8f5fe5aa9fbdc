"""Decodes text: UTF-8, UTF-16, and Korean CP949 where the text is evidently Korean; other encodings are refused."""

from __future__ import annotations

import re
import shlex
import unicodedata

from dpo_lightning.data.readers.bad_rows import MAX_BAD_ROWS
from dpo_lightning.data.readers.source import Source
from dpo_lightning.errors import ExitCode, Problem, UserError

UTF8_BOM = "\ufeff"
WIDE_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of other encodings; UTF-32 is first, as its mark begins with that of UTF-16."""

KOREAN, WESTERN = "CP949", "CP1252"
"""The encodings in which Excel on Windows saves CSV in Korean and in Western European languages."""

EASTERN = {"CP932": "Japanese", "GB18030": "simplified Chinese", "BIG5": "traditional Chinese", KOREAN: "Korean"}
"""Encodings of two bytes for a character, by the names of iconv and of Python, with their languages."""

COMMON_SYLLABLES = frozenset(
    "이다는을를의가에은고하지로한도서사기요나니어아시자리대해인그으정것있스일수습세들보라과장전오주제여원생러성무안"
    "상면부게만마우음조소방위화물내거때문비공개네유치동구각히더좋말줄알모할까질답"
)
"""The syllables of most of a Korean text (about two of three); other texts have few of them when decoded as Korean."""

MIN_COMMON = 0.2
"""Share of `COMMON_SYLLABLES` among the syllables of a text from which it is taken as Korean."""

MIN_COMMON_COUNT = 3
"""Common syllables that a text must have at least: a share of very few characters is a matter of chance."""

MIN_HANGUL = 0.9
"""Share of usual Hangul syllables among letters beyond ASCII: in other encodings, many bytes decode to hanja or rare
syllables."""

MIN_ADJACENT = 0.6
"""Share of bytes beyond ASCII that follow or precede another one, from which a text is taken as East Asian."""

HIGH = re.compile(rb"[\x80-\xff]+")
BEFORE, AFTER = 20, 40
"""Bytes around an invalid one that an error quotes."""


def decode_text(data: bytes, source: Source) -> str:
    """Decode text without its byte order mark; an encoding other than UTF-8 is added to the notes of `source`.

    Raises:
        UserError: 65 for any other encoding, with each line that is not UTF-8 and the command that converts the file.
    """
    wide = _find_wide_encoding(data)
    if wide == "UTF-32":
        raise UserError(
            ExitCode.DATA,
            Problem("expected UTF-8 text, found UTF-32 text", where=f"{source.name}:1"),
            fix=format_iconv_command(wide, source),
        )
    if wide:
        return _decode_wide(data, wide, source)
    try:
        return data.decode().removeprefix(UTF8_BOM)
    except UnicodeDecodeError:
        pass
    text = decode_korean(data)
    if text is None:
        raise _encoding_error(data, source)
    source.notes.append(f"read as {KOREAN} (Korean) text")
    return text


def decode_korean(data: bytes) -> str | None:
    """Decode text as CP949; None if it is invalid or if the result does not look like Korean.

    Chinese, Japanese, Russian and Western text is valid CP949 in part: it decodes to hanja, to Hangul syllables that
    hardly occur, or to others than those that make up most of a Korean text.
    """
    try:
        text = data.decode(KOREAN)
    except UnicodeDecodeError:
        return None
    letters = [character for character in text if character > "\x7f" and character.isalpha()]
    # EUC-KR has the 2,350 syllables of KS X 1001; CP949 adds 8,822 that hardly occur.
    usual = {
        character for character in set(letters) if "가" <= character <= "힣" and _is_encodable(character, "euc_kr")
    }
    hangul = [character for character in letters if character in usual]
    common = sum(character in COMMON_SYLLABLES for character in hangul)
    enough = len(hangul) >= MIN_HANGUL * len(letters) and common >= max(MIN_COMMON_COUNT, MIN_COMMON * len(hangul))
    return text if enough else None


def format_iconv_command(encoding: str, source: Source) -> str:
    """Format the command that converts a file to UTF-8 beside it: `rows.csv` or `rows.csv.gz` to `rows.utf8.csv`."""
    return source.format_conversion(f"iconv -f {shlex.quote(encoding)} -t UTF-8", "utf8")


def _find_wide_encoding(data: bytes) -> str:
    """Find UTF-32 by its byte order mark, and UTF-16 by its mark or by the NUL bytes of its ASCII characters."""
    for magic, encoding in WIDE_BOMS.items():
        if data.startswith(magic):
            return encoding
    if len(data) < 4 or b"\0" not in data:
        return ""
    # ASCII text at the beginning: every other byte is NUL.
    if data[0:4:2] != data[1:4:2] and b"\0\0" in (data[0:4:2], data[1:4:2]):
        return "UTF-16BE" if data[0] == 0 else "UTF-16LE"
    readable = [encoding for encoding in ("UTF-16LE", "UTF-16BE") if _is_readable(data, encoding)]
    return readable[0] if len(readable) == 1 else ""


def _is_readable(data: bytes, encoding: str) -> bool:
    """Whether data decodes to text with a separator or line end of ASCII and without unassigned or control characters.

    In the other byte order, a line end is U+0A00 or U+0D00, which are not assigned.
    """
    try:
        characters = set(data.decode(encoding))
    except UnicodeDecodeError:
        return False
    odd = {character for character in characters if unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")}
    return odd <= set("\t\r\n") and not characters.isdisjoint("\r\n")


def _decode_wide(data: bytes, encoding: str, source: Source) -> str:
    try:
        text = data.decode(encoding).removeprefix(UTF8_BOM)
    except UnicodeDecodeError as error:
        raise UserError(
            ExitCode.DATA,
            Problem(f"not {encoding}: byte {error.start}", where=f"{source.name}:1"),
            fix="the file is truncated or damaged: write, copy or download it again",
        ) from None
    source.notes.append(f"read as {encoding} text")
    return text


def _is_encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _is_valid(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _encoding_error(data: bytes, source: Source) -> UserError:
    """Return an error with each line that is not UTF-8, and the command that converts the file.

    No encoding is certain here: single bytes are valid in `WESTERN` almost always, and one East Asian encoding is often
    valid in another, so that the command depends on the language, which the user knows.
    """
    problems: list[Problem] = []
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            text = line[max(0, error.start - BEFORE) : error.start + AFTER].decode("utf-8", "backslashreplace")
            where = f"{source.name}:{number}"
            problems.append(Problem(f"not UTF-8: byte {start + error.start}", where=where, text=text))
            if len(problems) == MAX_BAD_ROWS:
                problems.insert(0, Problem(f"stopped after {MAX_BAD_ROWS:,} bad rows", where=where))
                break
        start += len(line) + 1  # and the line feed
    return UserError(ExitCode.DATA, problems, fix=_suggest_conversion(data, source))


def _suggest_conversion(data: bytes, source: Source) -> str:
    """The command for each language in whose encoding the data is valid; the Western one for single bytes."""
    runs = [len(run) for run in HIGH.findall(data)]
    adjacent = sum(length for length in runs if length > 1) >= MIN_ADJACENT * sum(runs)
    valid = {name: language for name, language in EASTERN.items() if adjacent and _is_valid(data, name)}
    if not valid:
        return f"save the file as UTF-8 (if it was saved on Windows: {format_iconv_command(WESTERN, source)})"
    first, *others = valid
    rest = "".join(f", or -f {name} for {valid[name]}" for name in others)
    return f"if the text is {valid[first]}: {format_iconv_command(first, source)}{rest}"
