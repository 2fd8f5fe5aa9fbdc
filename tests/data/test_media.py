"""Rows that need pictures, video or sound: no model here reads them, and an answer without them means little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user

from dpo_lightning.data.formats.media import PLACEHOLDER, find_media
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.prompts import PromptKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
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


@pytest.mark.parametrize("value", [None, [], "", [None], {}, [[]], {"path": None, "bytes": None}, 0, False])
def test_empty_columns_are_fine(tmp_path: Path, value: Any) -> None:
    rows = [{**PAIR, "images": value}, {**OTHER, "images": value}]
    examples, warnings = load_examples(PairKind, jsonl(tmp_path, rows))
    assert (len(examples), warnings) == (2, ["columns that are not used: images"])


@pytest.mark.parametrize("name", ["image_count", "num_images", "has_image", "imagery", "video_title", "source"])
def test_columns_about_media_are_no_media(tmp_path: Path, name: str) -> None:
    load_examples(PairKind, jsonl(tmp_path, [{**PAIR, name: 2}, {**OTHER, name: 3}]))


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


def test_a_placeholder_that_is_left_is_noted(tmp_path: Path) -> None:
    """Where the pictures were removed: the model would learn `<image>` as text."""
    rows = [{"messages": PEARS, "images": ["a.png"]}, {"messages": [user("Why?"), assistant("So.")], "images": ["b"]}]
    path = jsonl(tmp_path, rows)
    _, warnings = load_examples(SFTKind, path, ignore_columns=["images"])
    assert [line for line in warnings if "<image>" in line] == [
        f"rows with placeholders of pictures, video or sound (such as <image>): 1 ({path}:1)"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<image>\nWhat is it?", True),
        ("Compare <image_1> and <image 2>.", True),
        ("<|image_1|> What is it?", True),
        ("<|vision_start|><|image_pad|><|vision_end|>What is it?", True),
        ("[IMG] What is it?", True),
        ("<video>What happens?", True),
        ("What is said?<audio>", True),
        ("Who plays the <video> element in a browser?", False),
        ("An image, an <img src='a.png'>.", False),
        ("<audio controls><source src='a.mp3'></audio>", False),
        ("<video>\n<source src='a.mp4'>\n</video>", False),
    ],
)
def test_placeholders(text: str, found: bool) -> None:
    assert bool(PLACEHOLDER.search(text)) is found


def test_where_media_are_found() -> None:
    assert find_media("image_urls") == "pictures"
    assert find_media("inputAudio") == "sound"
    assert find_media("text") == ""
    assert find_media("video_url") == "video"
