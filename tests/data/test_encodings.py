"""Text that is not UTF-8: read where it is certain, and never as other characters than its author wrote."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.row_files import refusal, written

from dpo_lightning.data.readers.encodings import decode_korean, decode_text
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode

DATA = Path(__file__).parents[2] / "data"
KOREAN = "질문,좋은 답\n오늘 날씨가 어때요?,“맑고 따뜻합니다.”\n"
CHINESE = (
    "问题,好答案,坏答案 你好世界 今天天气怎么样 我想学习编程应该从哪里开始 水的沸点是多少度 "
    "他不知道这个问题的答案 不好 好的 没有办法 比较便宜的东西 大家都很高兴 我不能回答 中国有五千年的历史 "
    "苹果是一种水果 猫喜欢吃鱼 对不起 多少钱"
)
TRADITIONAL = (
    "問題,好答案,壞答案 你好世界 今天天氣怎麼樣 我想學習程式設計 水的沸點是多少度 他不知道這個問題的答案 沒有辦法"
)
JAPANESE = "質問,良い答え,悪い答え こんにちは世界 今日の天気はどうですか 水の沸点は何度ですか 東京から大阪まで はい"
RUSSIAN = "Вопрос,ответ Привет мир Какая сегодня погода Москва столица России ПРИВЕТ НЕТ Почему небо голубое"
WESTERN = (
    "L’été à l’école it’s don’t I’m we’d “Hello” Café naïve ÄRGER ÖSTERREICH ÜBUNG ÉTÉ Größe años £100 São Paulo ÀÖÜ"
)
GREEK = "Γειά σου Κόσμε Καλημέρα ΕΛΛΑΔΑ Ναι Γιατί"
THAI = "สวัสดีชาวโลก วันนี้อากาศเป็นอย่างไร"
FOREIGN = [
    *((CHINESE, encoding) for encoding in ("gb18030", "gbk")),
    *((TRADITIONAL, encoding) for encoding in ("big5", "gb18030")),
    *((JAPANESE, encoding) for encoding in ("cp932", "euc_jp")),
    *((RUSSIAN, encoding) for encoding in ("cp1251", "koi8-r", "cp866", "iso8859-5")),
    *((WESTERN, encoding) for encoding in ("cp1252", "mac_roman")),
    (GREEK, "cp1253"),
    (THAI, "cp874"),
]


@pytest.mark.parametrize(("text", "encoding"), FOREIGN)
def test_no_piece_of_another_language_is_read_as_korean(text: str, encoding: str) -> None:
    pieces = {text[start : start + length] for length in range(1, 12) for start in range(len(text))}
    pieces |= {text, text * 20, *text.split()}
    mistaken = {piece for piece in pieces if decode_korean(_encode(piece, encoding)) not in (None, piece)}
    assert not mistaken


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding, "ignore")


def test_korean_texts_are_read_as_korean() -> None:
    rows = json.loads((DATA / "preference_train.json").read_text(encoding="utf-8"))
    texts = [row["chosen"] for row in rows if len(re.findall("[가-힣]", row["chosen"])) > 10]
    encoded = {text: text.encode("cp949", "ignore") for text in texts}
    wrong = [text for text, data in encoded.items() if decode_korean(data) != data.decode("cp949")]
    assert len(texts) > 50
    assert not wrong


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-16-le", "utf-16-be"])
def test_other_encodings_that_are_read(encoding: str) -> None:
    source = Source("f")
    assert decode_text(KOREAN.encode(encoding), source) == KOREAN
    assert len(source.notes) == 1
    assert source.notes[0].startswith("read as CP949" if encoding == "cp949" else "read as UTF-16")


@pytest.mark.parametrize("text", ["가,나\n", "prompt,chosen\nx,é\n", '{"a": "b"}\n', "각각\n가가가"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding), Source("f")) == text


def test_utf8_needs_no_note() -> None:
    source = Source("f")
    assert decode_text(b"\xef\xbb\xbf" + KOREAN.encode(), source) == KOREAN
    assert not source.notes


def test_utf16_that_is_cut_off() -> None:
    refusal(lambda: decode_text(KOREAN.encode("utf-16")[:-1], Source("f")), ExitCode.DATA, "not UTF-16: byte", "f:1")


@pytest.mark.parametrize(
    ("text", "encoding", "command"),
    [
        (WESTERN, "cp1252", "iconv -f CP1252"),
        (CHINESE, "gb18030", "-f GB18030"),
        (JAPANESE, "cp932", "iconv -f CP932"),
        (TRADITIONAL, "big5", "-f BIG5"),
        ("ärger, größer, Österreich", "latin1", "iconv -f CP1252"),
    ],
)
def test_the_command_for_text_whose_encoding_is_not_certain(text: str, encoding: str, command: str) -> None:
    refusal(lambda: decode_text(text.encode(encoding), Source("a.csv")), ExitCode.DATA, command, "not UTF-8")


@pytest.mark.skipif(not shutil.which("iconv"), reason="needs iconv")
@pytest.mark.parametrize("packed", [False, True])
def test_the_command_makes_the_file_readable(tmp_path: Path, packed: bool) -> None:
    data = "prompt,chosen\nécole,été\n".encode("cp1252")
    path = written(tmp_path, gzip.compress(data) if packed else data, "a b.csv.gz" if packed else "a b.csv")
    message = refusal(lambda: list(read_rows(path)), ExitCode.DATA, f"not UTF-8: byte 14 at {path}:2")
    command = message.rpartition("saved on Windows: ")[2].removesuffix(")")
    subprocess.run(["sh", "-c", command], check=True)
    (row,) = read_rows(str(tmp_path / "a b.utf8.csv"))
    assert row.values == {"prompt": "école", "chosen": "été"}


def test_a_note_names_the_file(tmp_path: Path) -> None:
    path, notes = written(tmp_path, KOREAN.encode("cp949"), "rows.csv"), []
    (row,) = read_rows(path, notes=notes)
    assert row.values == {"질문": "오늘 날씨가 어때요?", "좋은 답": "“맑고 따뜻합니다.”"}
    assert notes == [f"{path}: read as CP949 (Korean) text"]
