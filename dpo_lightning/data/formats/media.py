"""Pictures, video and sound in rows: the columns, content parts and placeholders by which data sets have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from dpo_lightning.data.formats.words import split_name

MEDIA = {
    **dict.fromkeys(("image", "images", "img", "imgs", "picture", "pictures", "pixel"), "pictures"),
    **dict.fromkeys(("photo", "photos", "photograph", "photographs", "screenshot", "screenshots"), "pictures"),
    **dict.fromkeys(("video", "videos"), "video"),
    **dict.fromkeys(("audio", "audios"), "sound"),
}
"""Words in the names of columns and content parts -> what these have."""

CARRIERS = frozenset(
    (
        *("url", "urls", "path", "paths", "file", "files", "filename", "bytes", "data", "base64", "values", "input"),
        *("pad", "list"),
    )
)
"""Words beside them: how the content is given. With any other word (`video_title`), a name is of something else."""

IDS = frozenset(("id", "ids"))
"""Words beside those of pictures: `image_id` is the picture of a question, `video_id` often where a text is from."""

HINTS = frozenset(
    (
        *("frame", "frames", "media", "sound", "sounds", "clip", "clips", "recording", "recordings", "voice", "speech"),
        *("multi", "multimodal", "modal", "jpg", "jpeg", "png", "gif", "mp4", "wav", "mp3"),
    )
)
"""Words in the names of columns that may have media; the content shows whether they do."""

SUFFIXES = {
    **dict.fromkeys(("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "heic", "avif"), "pictures"),
    **dict.fromkeys(("mp4", "mov", "avi", "mkv", "webm", "m4v"), "video"),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"), "sound"),
}
"""Ends of file names -> what the files have."""

ENDING = rf"{{1,500}}\.({'|'.join(SUFFIXES)})(?:[?#]\S*)?"
FILE = re.compile(rf"[^\s()'\"=]{ENDING}", re.IGNORECASE)
"""The name or address of such a file, not one within code."""

SPACED_FILE = re.compile(rf"[^\n]{ENDING}", re.IGNORECASE)

INLINE_URL = re.compile(r"data:(image|video|audio)/", re.IGNORECASE)
BRACKETS = " \t\n[](){}\"'"
"""Characters around what is in a list that a table has as text."""

KEY = re.compile(r"[\"']\w+[\"']\s*:")
NOTHING = frozenset(("", "null", "none", "nan", "n/a", "na", "-", "no", "false", "0", "-1"))
"""Texts by which tables write that there is nothing, also within brackets."""

SCHEMA = frozenset(("object", "array", "string", "number", "integer", "boolean"))
"""Types by which a JSON schema describes a value, as those of a function's parameters."""

INLINE = ("inlineData", "inline_data", "fileData", "file_data")
"""Content parts of Gemini, whose `mimeType` says what they are."""

TOKEN = (
    r"<\|?(?:image|video|audio|media)(?:_?\d+|_pad|_start|_end|_bos|_eos|_token)\|>|<\|vision_(?:start|end)\|>"
    r"|<start_of_image>|<\|begin_of_(?:image|video|audio)\|>|<image_(?:soft_token|placeholder)>|<image[_ ]?\d+>"
    r"|Picture \d+:[ \t]*<img>[^<>\n]+</img>"
)
"""Placeholders that mean nothing else."""

IMAGE = r"(?:<image>|<\|?(?i:image|video|audio)\|>)"
"""Placeholders that are no elements of HTML, but that a question may be about."""

ELEMENT = r"(?i:<(?:image|video|audio)>|\[img\])"
"""Placeholders that are also elements of HTML, components or BBCode."""

PLACEHOLDER = re.compile(rf"{TOKEN}|{IMAGE}|<img>|\[IMG\]|\A\s*<(?:video|audio)>(?!\s*<)|(?<!>)<(?:video|audio)>\s*\Z")
"""Texts at which the processor of a multimodal model puts its input, also where they may be meant as text."""

LABEL = r"(?i:image|picture|figure|frame|user|human|question)[ _-]?\d*[:：][ \t]*"
NEEDED = re.compile(
    rf"{TOKEN}|\A\s*{IMAGE}|(?:\A|\n)[ \t]*(?:{LABEL})?(?:{IMAGE}[ \t]*)+(?:\n|\Z)"
    rf"|\A(?:\s*{ELEMENT})+[ \t]*\n\s*[^\s<]"
)
"""Those where rows of such models have them: at the beginning, or alone on a line; elements only on the first line."""

CLOSED = re.compile(r"</(?:image|video|audio)\d*>")
SPAN = re.compile(r"`[^`\n]*`")
CODE = "```"
"""What encloses code, which a text may be about."""

PLACES = ("image", "video", "audio", "vision", "media", "img", "IM", "Image", "VIDEO", "Video", "AUDIO", "Audio")
"""Strings of which each text with a placeholder contains one."""

KINDS = {"video": "video", "audio": "sound"}

INSTEAD = "and this package trains text"


@lru_cache(1024)  # columns have the same few names in all rows
def find_media(name: str) -> str:
    """What a column or content part of this name has: `pictures`, `video` or `sound`; "" if it is something else."""
    words = split_name(name)
    found = [MEDIA[word] for word in words if word in MEDIA]
    rest = {word for word in words if word not in MEDIA and word not in CARRIERS and not word.isdecimal()}
    return found[0] if found and (not rest or (rest <= IDS and found[0] == "pictures")) else ""


@lru_cache(1024)
def may_have_media(name: str) -> bool:
    """Whether a column of this name may have media besides other things: `video_clip`, `image_name`, `frames`."""
    return any(word in MEDIA or word in HINTS for word in split_name(name))


@lru_cache(1024)
def names_files(name: str) -> bool:
    """Whether a column of this name has files rather than texts, so that their names may have spaces: `image_name`."""
    words = [word for word in split_name(name) if word not in ("name", "names")]
    return names_only_media(" ".join(words)) and any(word in MEDIA for word in words)


@lru_cache(1024)
def names_only_media(name: str) -> bool:
    """Whether all words of a name are about media or how they are given; not those of `image_description`."""
    words = split_name(name)
    return all(word in MEDIA or word in HINTS or word in CARRIERS or word.isdecimal() for word in words)


def find_held_media(value: Any, *, spaced: bool) -> str:
    """What is held by a value: names of files, inline data, or objects with such keys; "" for texts.

    Args:
        value: a JSON value.
        spaced: whether names of files may have spaces, so that a sentence that ends with a name is one.
    """
    if isinstance(value, str):
        if found := INLINE_URL.match(value):
            return MEDIA[found[1].lower()]
        if found := (SPACED_FILE if spaced else FILE).fullmatch(value.strip(BRACKETS)):
            return SUFFIXES[found[1].lower()]
        value = value[1:-1].split(",") if value[:1] + value[-1:] == "[]" and "," in value else ()
    if isinstance(value, Mapping):
        if {"array", "sampling_rate"} <= value.keys():
            return "sound"
        value = {} if _is_schema(value) else value
        data = {key: item for key, item in value.items() if key != "properties" and not _is_schema(item)}
        for key, item in data.items():
            if isinstance(item, (Mapping, list)) and (media := find_media(key)) and has_content(item):
                return media
        value = list(data.values())
    items = value if isinstance(value, (list, tuple)) else ()
    return next(filter(None, (find_held_media(item, spaced=spaced) for item in items)), "")


def _is_schema(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, Mapping) else ""
    return any(isinstance(name, str) and name in SCHEMA for name in (kind if isinstance(kind, list) else [kind]))


def has_content(value: Any) -> bool:
    """Whether a value has anything in it: bytes, or numbers and texts that do not mean that there is nothing."""
    if isinstance(value, str):
        return any(item.strip(BRACKETS).lower() not in NOTHING for item in KEY.sub("", value).split(","))
    if isinstance(value, Mapping):
        return any(map(has_content, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_content, value))
    return bool(value) and str(value) not in ("-1", "nan")


def find_media_part(part: Mapping[str, Any]) -> str:
    """What a content part of a message has, by its `type`, its MIME type or its keys; "" for text and unknown parts."""
    names: Collection[str] = [str(part["type"])] if "type" in part else [key for key in part if key not in INLINE]
    for key in INLINE:
        inner = part.get(key)
        if isinstance(inner, Mapping):
            names = [str(inner.get("mimeType", inner.get("mime_type", ""))).partition("/")[0]]
    return next(filter(None, map(find_media, names)), "")


def find_placeholder(text: str) -> str:
    """What a question needs by a placeholder that stands for it: `pictures`, `video` or `sound`; "" without one."""
    if CODE in text or CLOSED.search(text):
        return ""
    found = NEEDED.search(SPAN.sub("`", text))
    word = found and re.search("video|audio", found[0].lower())
    return (KINDS[word[0]] if word else "pictures") if found else ""
