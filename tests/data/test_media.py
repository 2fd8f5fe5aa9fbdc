"""Rows that need pictures, video or sound: no model here reads them, and an answer without them means little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user

from dpo_lightning.data.convert import convert_rows
from dpo_lightning.data.formats.media import find_media, has_content
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.prompts import PromptKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.errors import ExitCode

PEARS = [user("<image>What is in the bowl?"), assistant("Three pears.")]


@pytest.mark.parametrize(
    ("name", "value", "content"),
    [
        ("images", ["bowl.jpg"], "pictures"),
        ("image", "bowl.jpg", "pictures"),
        ("Image", 397133, "pictures"),
        ("image_path", "bowl.jpg", "pictures"),
        ("image_url", {"url": "https://x/bowl.jpg"}, "pictures"),
        ("image_1", {"path": "bowl.jpg"}, "pictures"),
        ("videos", ["bowl.mp4"], "video"),
        ("video", {"bytes": "x"}, "video"),
        ("audios", ["bowl.wav"], "sound"),
        ("audio", {"array": [0.1, 0.2], "sampling_rate": 16000}, "sound"),
        ("audio_file", "bowl.wav", "sound"),
        ("photo", "bowl.jpg", "pictures"),
        ("screenshots", ["bowl"], "pictures"),
        ("image_id", 397133, "pictures"),
        ("image_name", "a bowl.JPG", "pictures"),
        ("question_image", "bowl.jpg", "pictures"),
        ("user_audio", "bowl.wav", "sound"),
        ("speech", "bowl.wav", "sound"),
        ("speech", {"array": [0.1, 0.2], "sampling_rate": 16000}, "sound"),
        ("frames", ["1.jpg", "2.jpg"], "pictures"),
        ("media", ["https://x/bowl.webp?size=2"], "pictures"),
        ("video_clip", "bowl.mp4", "video"),
        ("sound", "bowl.wav", "sound"),
        ("wav_path", "bowl.wav", "sound"),
        ("multi_modal_data", {"image": ["bowl.png"]}, "pictures"),
        ("mm", {"images": [{"path": "bowl"}]}, "pictures"),
        ("attachments", '["bowl.png"]', "pictures"),
        ("attachments", "['bowl.png','b.png']", "pictures"),
        ("attachments", [{"properties": {"size": 2}, "image": {"path": "bowl"}}], "pictures"),
        ("file", "data/bowl.tiff", "pictures"),
        ("b64", "data:image/png;base64,iVBORw0", "pictures"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (PairKind, PAIR),
        (SFTKind, {"messages": PEARS}),
        (SFTKind, {"instruction": "What is in the bowl?", "output": "Pears."}),
        (SFTKind, {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Pears."}]}),
    ],
)
def test_columns_with_media_are_refused(
    tmp_path: Path, kind: Any, row: dict[str, Any], name: str, value: Any, content: str
) -> None:
    """In every kind of row, whether or not the texts have a placeholder; each column once, with the number of rows."""
    path = jsonl(tmp_path, [{**row, name: value}, {**row, name: value}])
    what = f"these rows need {content}, and this package trains text: the column '{name}' (2 rows)"
    said = refusal(lambda: load_examples(kind, path), ExitCode.DATA, what, "rows.jsonl:1", f"ignore_columns {name}")
    assert "--data.columns" not in said


def test_prompts_alone_with_images_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": "What is this?", "image": "a.png"}, {"prompt": "And this?", "image": "b.png"}])
    refusal(lambda: load_examples(PromptKind, path), ExitCode.DATA, "these rows need pictures")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "",
        [None],
        {},
        [[]],
        {"path": None, "bytes": None},
        0,
        False,
        "[]",
        " ",
        "null",
        "None",
        "{}",
        "nan",
        "[ ]",
        "['']",
        "['', '']",
        "[None, None]",
        "{'bytes': None, 'path': None}",
        '{"bytes": null, "path": ""}',
        "False",
        "0",
        "N/A",
        "-",
        "no",
        -1,
    ],
)
def test_empty_columns_are_fine(tmp_path: Path, value: Any) -> None:
    rows = [{**PAIR, "images": value}, {**OTHER, "images": value}]
    examples, warnings = load_examples(PairKind, jsonl(tmp_path, rows))
    assert (len(examples), warnings) == (2, ["columns that are not used: images"])


@pytest.mark.parametrize(
    "value", ["{'bytes': None, 'path': 'bowl.png'}", "[None, 'bowl']", "no,bowl.png", "10", 1, [-1, 2]]
)
def test_columns_with_something_beside_nothing(tmp_path: Path, value: Any) -> None:
    path = jsonl(tmp_path, [{**PAIR, "images": value}, OTHER])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "these rows need pictures")


@pytest.mark.parametrize("name", ["image_count", "num_images", "has_image", "imagery", "video_title", "source"])
def test_columns_about_media_are_no_media(tmp_path: Path, name: str) -> None:
    load_examples(PairKind, jsonl(tmp_path, [{**PAIR, name: 2}, {**OTHER, name: 3}]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_description", "A bowl of pears."),
        ("image_name", "alpine"),
        ("media_type", "text"),
        ("media", "newspaper"),
        ("sound_mind", "yes"),
        ("sound", "A low hum."),
        ("frames", "Commerce_buy"),
        ("video_id", "dQw4w9WgXcQ"),
        ("id", "17.png"),
        ("id", 17),
        ("source", "page_17.png"),
        ("avatar", "https://x/me.png"),
        ("metadata", {"image": "page_17.png"}),
        ("counts", {"images": 3, "words": 7}),
        ("url", "https://x/page.html"),
        ("note", "See bowl.png"),
        ("author_image", "https://x/me.png"),
        ("cover_image", "https://x/cover.png"),
        ("source_image_url", "https://x/page.png"),
        ("user", "me.png"),
        ("multi_step_answer", "chart.png"),
        ("multi_step_answer", "Save it as chart.png"),
        ("image_description", "The user uploaded photo.png"),
        ("clip", "He said: see intro.mp4"),
        ("speech", "Ladies and gentlemen, welcome."),
        ("code", "plt.savefig('x.png')"),
        ("code", 'path="x.png"'),
        ("code", "open(x.png"),
        ("log", "[INFO] saved as x.png, y.png"),
        ("apis", [{"name": "show", "parameters": {"properties": {"image": {"type": "string"}}}}]),
        ("apis", [{"name": "show", "parameters": {"image": {"type": ["string", "null"], "default": "x.png"}}}]),
        ("apis", [{"type": "object", "properties": {"image": {"$ref": "#/image"}}}]),
    ],
)
def test_texts_in_columns_of_such_names_are_fine(tmp_path: Path, name: str, value: Any) -> None:
    assert len(load_examples(PairKind, jsonl(tmp_path, [{**PAIR, name: value}, {**OTHER, name: value}]))[0]) == 2


def test_columns_that_have_other_files_as_well_are_fine(tmp_path: Path) -> None:
    """The file that a row of code is about may be a picture."""
    rows = [{**PAIR, "path": "src/main.py"}, {**OTHER, "path": "docs/logo.png"}]
    assert len(load_examples(PairKind, jsonl(tmp_path, rows))[0]) == 2


def test_answers_that_are_names_of_files_are_fine(tmp_path: Path) -> None:
    """For the prompts of an evaluation, the columns of answers are not read."""
    rows = [{"prompt": "Which file?", "chosen": "a.png", "reference_answer": "a.png"}] * 2
    assert len(load_examples(PromptKind, jsonl(tmp_path, rows))[0]) == 2


def test_pictures_in_a_table_are_refused(tmp_path: Path) -> None:
    """As the hub stores them: bytes, of which a text reader makes nothing."""
    rows = [{**row, "image": {"bytes": b"\x89PNG\r\n", "path": None}} for row in (PAIR, OTHER)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "these rows need pictures", "(2 rows)")


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ({"type": "image"}, "pictures"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "pictures"),
        ({"type": "input_image", "image_url": "x"}, "pictures"),
        ({"image": {"format": "png", "source": {"bytes": "x"}}}, "pictures"),
        ({"inlineData": {"mimeType": "image/png", "data": "x"}}, "pictures"),
        ({"type": "video", "video": "a.mp4"}, "video"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "sound"),
        ({"type": "audio", "audio": "a.wav"}, "sound"),
    ],
)
def test_parts_of_messages(tmp_path: Path, part: dict[str, Any], content: str) -> None:
    row = {**PAIR, "prompt": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}
    row |= {"chosen": [assistant("A pear.")], "rejected": [assistant("A fish.")]}
    path = jsonl(tmp_path, [row, row])
    said = refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"'prompt' message 1 needs {content}")
    assert "this package trains text" in said


def test_other_parts_are_refused_as_such(tmp_path: Path) -> None:
    row = {**PAIR, "prompt": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]}
    row |= {"chosen": [assistant("A pear.")], "rejected": [assistant("A fish.")]}
    path = jsonl(tmp_path, [row, row])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "has a content part that is not text")


@pytest.mark.parametrize(("key", "value", "content"), [("images", ["a.png"], "pictures"), ("audio", "a.wav", "sound")])
def test_keys_of_messages(tmp_path: Path, key: str, value: Any, content: str) -> None:
    rows = [{"messages": [{**user("What is it?"), key: value}, assistant("A pear.")]}] * 2
    path = jsonl(tmp_path, rows)
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, f"'messages' message 1 needs {content}")
    empty = [{"messages": [{**user(text), key: []}, assistant("A pear.")]} for text in "ab"]
    assert len(load_examples(SFTKind, jsonl(tmp_path, empty))[0]) == 2


def test_a_placeholder_that_is_left_is_refused(tmp_path: Path) -> None:
    """Where the pictures were removed: the model would learn to answer without them."""
    rows = [{"messages": PEARS, "images": ["a.png"]}, {"messages": [user("Why?"), assistant("So.")], "images": ["b"]}]
    path = jsonl(tmp_path, rows)
    what = "these rows need pictures, and this package trains text: a placeholder in the prompt at"
    refusal(
        lambda: load_examples(SFTKind, path, ignore_columns=["images"]),
        ExitCode.DATA,
        what,
        f"{path}:1",
        "bad_rows drop",
    )


def test_rows_with_placeholders_are_counted_or_left_out(tmp_path: Path) -> None:
    asked = {**PAIR, "prompt": f"<image>\n{PAIR['prompt']}"}
    path = jsonl(tmp_path, [OTHER, asked, {**asked, "chosen": "Red."}, {**PAIR, "chosen": "Red."}, PAIR])
    said = refusal(
        lambda: load_examples(PairKind, path), ExitCode.DATA, "placeholder in the prompt (2 rows)", f"{path}:2"
    )
    assert f"{path}:3" not in said
    bad = BadRows(drops=True)
    assert len(load_examples(PairKind, path, bad=bad)[0]) == 3
    assert [row.line for row in bad.leave_out()] == [2, 3]
    assert len(convert_rows(path).rows) == 3


def test_where_media_are_found() -> None:
    assert find_media("image_urls") == "pictures"
    assert find_media("inputAudio") == "sound"
    assert find_media("text") == ""
    assert not has_content(float("nan"))
    assert find_media("video_url") == "video"
