"""Placeholders of pictures, video and sound in prompts: refused where rows have them, noted in a text about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.row_files import OTHER, PAIR, jsonl, refusal

from dpo_lightning.data.kinds.markup import LEFT_PLACES
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("<image>\nWhat is it?", "pictures"),
        ("<image>\nis it red?", "pictures"),
        ("<image>What is it?", "pictures"),
        ("<image> Describe it.", "pictures"),
        ("<image><image>\nCompare.", "pictures"),
        ("<image>\n<image>\nCompare.", "pictures"),
        ("What is it?\n<image>", "pictures"),
        ("Look:\n<image>\nWhat is it?", "pictures"),
        ("Image-1: <image>\nImage-2: <image>\nCompare.", "pictures"),
        ("USER: <image>\nWhat is it?", "pictures"),
        ("Compare <image 1> and <image_2>.", "pictures"),
        ("What is in <|image_1|>?", "pictures"),
        ("<|image|>What is it?", "pictures"),
        ("Look:\n<|image|>\nWhat is it?", "pictures"),
        ("<|begin_of_image|><|image|><|end_of_image|>What is it?", "pictures"),
        ("<|vision_start|><|image_pad|><|vision_end|>What is it?", "pictures"),
        ("What is it? <|vision_start|><|image_pad|><|vision_end|>", "pictures"),
        ("<|video_pad|> What happens?", "video"),
        ("<|audio_bos|><|AUDIO|><|audio_eos|>What is said?", "sound"),
        ("<start_of_image> What is it?", "pictures"),
        ("[IMG]\nWhat is it?", "pictures"),
        ("<Image>\nWhat is it?", "pictures"),
        ("Picture 1: <img>bowl.jpg</img>\nWhat is it?", "pictures"),
        ("<video>\nWhat happens?", "video"),
        ("<video>\n<video>\nCompare.", "video"),
        ("<audio>\n\nWhat is said?", "sound"),
    ],
)
def test_placeholders_where_rows_have_them_are_refused(tmp_path: Path, text: str, media: str) -> None:
    """In the prompt, not in answers."""
    path = jsonl(tmp_path, [{**PAIR, "prompt": text}, OTHER])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"these rows need {media}", "placeholder")
    load_examples(PairKind, jsonl(tmp_path, [{**PAIR, "chosen": text}, OTHER]))


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("<video> autoplay not working in Chrome", True),
        ("<video> tag does not play in Safari. Why?", True),
        ("<video> 태그는 어떻게 쓰나요?", True),
        ("<audio> Element hat keinen Ton", True),
        ("<video>What happens?", True),
        ("What is said?<audio>", True),
        ("What does this HTML tag do?\n<video>", True),
        ("<img> src not loading", True),
        ("<img>标签是什么？", True),
        ("What is wrong with this tag? <img>", True),
        ("<img>\nWhat is it?", True),
        ("Parse this XML: <item><img>photo.png</img></item>", True),
        ("What does <|image|> mean in Llama 3.2?", True),
        ("How do I use <image>", True),
        ("What is it? <image>", True),
        ("Is <image> an element of HTML?", True),
        ("Explain:\n<image>\n  <url>a.png</url>\n</image>", True),
        ("Use [IMG] tags in BBCode.", True),
        ("[IMG] tags do not work in phpBB", True),
        ("Why does Qwen have `<|image_pad|>`?", True),
        ("Explain:\n```\n<image>\n```", False),
        ("<Image> of Next.js is blurred", False),
        ("Who plays the <video> element in a browser?", False),
        ("Which is it: <video>, <audio> or <embed>?", False),
        ("<video>\n<source src='a.mp4'>\n", False),
        ("<video>\n<source src='a.mp4'>\n</video>", False),
        ("<audio controls><source src='a.mp3'></audio>", False),
        ("<image href='a.png'/>", False),
        ("Why is <img src='a.png'> blurred?", False),
    ],
)
def test_questions_about_placeholders_are_fine(tmp_path: Path, text: str, noted: bool) -> None:
    """Elements of HTML, tokens of models: a note, except where they are code or clearly elements."""
    assert _is_noted(tmp_path, {"prompt": text}) is noted


def _is_noted(folder: Path, changes: dict[str, str]) -> bool:
    notes = load_examples(PairKind, jsonl(folder, [{**PAIR, **changes}, OTHER]))[1]
    return any(line.startswith(LEFT_PLACES) for line in notes)
