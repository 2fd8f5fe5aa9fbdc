"""Pictures, video and sound in rows: the columns, content parts and placeholders by which data sets have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from dpo_lightning.data.formats.words import split_name

MEDIA = {
    **dict.fromkeys(("image", "images", "img", "imgs", "picture", "pictures", "pixel"), "pictures"),
    **dict.fromkeys(("video", "videos"), "video"),
    **dict.fromkeys(("audio", "audios", "speech"), "sound"),
}
"""Words in the names of columns and content parts -> what these have."""

CARRIERS = frozenset(
    (
        *("url", "urls", "path", "paths", "file", "files", "filename", "bytes", "data", "base64", "values", "input"),
        *("pad", "list"),
    )
)
"""Words beside them: how the content is given. With any other word (`video_title`), a name is of something else."""

INLINE = ("inlineData", "inline_data", "fileData", "file_data")
"""Content parts of Gemini, whose `mimeType` says what they are."""

PLACEHOLDER = re.compile(
    r"<image(?:[_ ]?\d+)?>|<\|?(?:image|video|audio)(?:_?\d+|_pad|_start|_token)?\|>|<\|vision_(?:start|end)\|>|\[IMG\]"
    r"|\A\s*<(?:video|audio)>(?!\s*<)|(?<!>)<(?:video|audio)>\s*\Z"
)
"""Texts at which the processor of a model with eyes or ears puts its input. `<video>` is an element of HTML as well."""

INSTEAD = "and this package trains text"


@lru_cache(1024)  # columns have the same few names in all rows
def find_media(name: str) -> str:
    """What a column or content part of this name has: `pictures`, `video` or `sound`; "" if it is something else."""
    words = split_name(name)
    found = [MEDIA[word] for word in words if word in MEDIA]
    rest = [word for word in words if word not in MEDIA and word not in CARRIERS and not word.isdecimal()]
    return found[0] if found and not rest else ""


def has_content(value: Any) -> bool:
    """Whether a value has anything in it: numbers other than 0, texts that are not empty, or bytes."""
    if isinstance(value, Mapping):
        return any(map(has_content, value.values()))
    return any(map(has_content, value)) if isinstance(value, (list, tuple)) else bool(value)


def find_media_part(part: Mapping[str, Any]) -> str:
    """What a content part of a message has, by its `type`, its MIME type or its keys; "" for text and unknown parts."""
    names: Collection[str] = [str(part["type"])] if "type" in part else [key for key in part if key not in INLINE]
    for key in INLINE:
        inner = part.get(key)
        if isinstance(inner, Mapping):
            names = [str(inner.get("mimeType", inner.get("mime_type", ""))).partition("/")[0]]
    return next(filter(None, map(find_media, names)), "")
