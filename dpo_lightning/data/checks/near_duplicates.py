"""Near-duplicates among many texts: MinHash signatures find candidates, which are then compared word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

SHINGLE = 3
"""Characters of a shingle."""

BANDS, ROWS = 21, 3
"""A candidate shares all `ROWS` minima of one of `BANDS` bands: at a similarity of 0.7, 99.98 % of pairs do."""

MOST_IN_BUCKET = 16
"""Texts of a bucket that are all compared with one another; in a larger one, only neighbours in sorted order are."""

CROWDED = 3
"""Number of such larger buckets from which a text is taken as one of many made from a template."""

NEIGHBOURS = 3
"""Texts before and after a text of a larger bucket with which it is compared."""

LONGEST = 4000
"""Characters that a signature covers: half from the beginning and half from the end."""

CHUNK = 1 << 16
"""Shingles that are hashed at a time: small enough for the processor's cache."""

SIMILAR = 0.7
"""Least Jaccard similarity of near-duplicates, over shingles."""

SHORTEST = 8
"""Characters below which a text has no near-duplicates."""

MARGIN = 0.15
"""By how much the estimate of a similarity may be too low: about 2.5 standard deviations."""

TEMPLATE_SIZE = 3
"""Relatives above which a text is taken as one of many made from a template, whose slots hold different words."""

RARE = 0.005
"""Share of the texts with relatives in which a word may occur that is taken as a slip, and not as what fills a slot."""

RARE_COUNT = 5
"""Number of texts in which such a word may occur in any case."""

REPLACED = 0.05
"""Share of words that may be replaced in two near-duplicates that are not made from a template."""

LEAST_LETTERS = 4
"""Letters of a word below which another one with one other letter is another word."""

ALIKE = 0.8
"""Least `SequenceMatcher.ratio` of a word and its misspelling or inflection."""

HAN, KANA = "\u3005\u3007\u3400-\u9fff\uf900-\ufaff", "\u3041-\u309f\u30a1-\u30ff"
SPACELESS = f"{HAN}{KANA}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
WORD = re.compile(
    f"[{HAN}]+(?=[{KANA}])|(?<=[{KANA}])[{HAN}]+|[\u3041-\u309f]+|[\u30a1-\u30ff]+|[{SPACELESS}]|[^\\s{SPACELESS}]+"
)
"""A word. Without spaces between words, it is a run of one script in Japanese, otherwise a single character."""

HAS_DIGIT = re.compile(r"\d")


def find_near_pairs(texts: Sequence[str], contexts: Sequence[str] | None = None) -> list[tuple[int, int]]:
    """Find pairs of near-duplicates among different normalized texts; the same texts give the same pairs.

    Two texts are near-duplicates if the Jaccard similarity of their shingles is at least `SIMILAR`, they have the same
    numbers, and either one only adds words to the other or replaced words are spelled alike. A share of `REPLACED` of
    the words may be others. Of two texts that are among many made from a template, however, only words that are rare in
    these may differ, as slots hold the same words again and again.

    Args:
        texts: different texts; the cost is linear in their total length.
        contexts: what must be equal in both besides; nothing if None.

    Returns:
        Pairs of indices, the smaller one first, in order.
    """
    signatures = sign(texts)
    first, second, crowded = find_candidates(texts, signatures)
    likely = estimate(signatures, first, second) >= SIMILAR - MARGIN
    first, second = first[likely], second[likely]
    relatives = np.bincount(np.concatenate((first, second)), minlength=len(texts))
    templated = crowded | (relatives > TEMPLATE_SIZE)
    groups: dict[Any, int] = {}
    keys = ((list_numbers(text), contexts[i] if contexts else "") for i, text in enumerate(texts))
    group = np.array([groups.setdefault(key, len(groups)) for key in keys], np.int64)
    equal = group[first] == group[second]
    common = list_common_words([texts[i] for i in np.flatnonzero(templated & (relatives > 0)).tolist()])
    slotted = templated[first] | templated[second]
    first, second, slotted = first[equal].tolist(), second[equal].tolist(), slotted[equal].tolist()
    words = {i: count_words(texts[i]) for i in {*first, *second}}
    slots = {i: frozenset(common.intersection(counts)) for i, counts in words.items()}
    found = []
    for i, j, by_template in zip(first, second, slotted, strict=True):
        if min(len(texts[i]), len(texts[j])) < SHORTEST:
            continue
        # A word of a slot that only one text has needs a rare word of the other, of which it may be the right spelling.
        if by_template and (
            len(slots[i] - slots[j]) > len(words[j]) - len(slots[j])
            or len(slots[j] - slots[i]) > len(words[i]) - len(slots[i])
        ):
            continue
        if (
            differ_little(words[i], words[j], common if by_template else None)
            and compute_jaccard(texts[i], texts[j]) >= SIMILAR
        ):
            found.append((i, j))
    return found


def sign(texts: Sequence[str]) -> Any:
    """Return the MinHash signatures of texts, an array of (texts, BANDS * ROWS) 32-bit minima."""
    generator = np.random.Generator(np.random.PCG64(0))
    salts = generator.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32)
    factors = generator.integers(0, 1 << 32, BANDS * ROWS, dtype=np.uint32) | np.uint32(1)
    signatures = np.empty((len(texts), BANDS * ROWS), np.uint32)
    start = 0
    while start < len(texts):
        stop, size = start, 0
        while stop < len(texts) and size < CHUNK:
            size += min(len(texts[stop]), LONGEST)
            stop += 1
        hashes, offsets = hash_shingles(texts[start:stop])
        for k in range(BANDS * ROWS):
            signatures[start:stop, k] = np.minimum.reduceat((hashes ^ salts[k]) * factors[k], offsets)
        start = stop
    return signatures


def hash_shingles(texts: Sequence[str]) -> tuple[Any, Any]:
    """Hash all shingles of texts; return the hashes, and the index of each text's first one."""
    padding = " " * (SHINGLE - 1)  # a text shorter than a shingle has at least one, too
    parts = [padding + shorten(text) + padding for text in texts]
    codes = np.frombuffer("".join([*parts, padding]).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(part) for part in parts])
    hashes = np.zeros(len(codes) - SHINGLE + 1, np.uint32)
    for k in range(SHINGLE):
        hashes = hashes * np.uint32(0x01000193) + codes[k : len(hashes) + k]
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x7FEB352D)
    hashes ^= hashes >> np.uint32(15)
    hashes *= np.uint32(0x846CA68B)
    hashes ^= hashes >> np.uint32(16)
    return hashes, np.concatenate(([0], ends[:-1]))


def shorten(text: str) -> str:
    """Return a text, or the beginning and the end of a long one."""
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]


def find_candidates(texts: Sequence[str], signatures: Any) -> tuple[Any, Any, Any]:
    """Find pairs of texts that share a bucket; also return which texts are in several buckets too large to compare."""
    crowded = np.zeros(len(texts), np.int64)
    ranks = np.empty(len(texts), np.int64)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    pairs = [np.empty(0, np.int64)]
    for band in range(BANDS):
        columns = signatures[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
        keys = columns[:, 0] << np.uint64(32) ^ columns[:, 1] << np.uint64(16) ^ columns[:, 2]
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        starts, stops = np.concatenate(([0], borders)), np.concatenate((borders, [len(order)]))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True) if len(order) else ():
            if stop - start == 1:
                continue
            members = order[start:stop]
            reach = stop - start
            if reach > MOST_IN_BUCKET:
                crowded[members] += 1
                members = members[np.argsort(ranks[members])]
                reach = NEIGHBOURS + 1
            for step in range(1, reach):
                one, other = members[:-step], members[step:]
                pairs.append(np.minimum(one, other) * len(texts) + np.maximum(one, other))
    found = np.sort(np.concatenate(pairs))
    found = found[np.append(True, np.diff(found) != 0)[: len(found)]]  # several times as fast as np.unique
    return found // max(len(texts), 1), found % max(len(texts), 1), crowded >= CROWDED


def estimate(signatures: Any, first: Any, second: Any) -> Any:
    """Estimate the Jaccard similarities of pairs of texts from their signatures."""
    shares = [
        (signatures[first[i : i + CHUNK]] == signatures[second[i : i + CHUNK]]).mean(axis=1)
        for i in range(0, len(first), CHUNK)
    ]
    return np.concatenate(shares) if shares else np.empty(0)


def count_words(text: str) -> Counter[str]:
    """Count the words of a normalized text."""
    return Counter(WORD.findall(text))


def list_numbers(text: str) -> tuple[str, ...]:
    """List the words with digits: texts with other numbers are other questions."""
    if not HAS_DIGIT.search(text):
        return ()
    return tuple(sorted(word for word in text.split() if not word.isalpha() and HAS_DIGIT.search(word)))


def list_common_words(texts: Sequence[str]) -> frozenset[str]:
    """List the words that are too frequent in texts to be slips."""
    counts = Counter(word for text in texts for word in set(WORD.findall(text)))
    return frozenset(word for word, count in counts.items() if count > max(RARE_COUNT, RARE * len(texts)))


def differ_little(words: Counter[str], others: Counter[str], common: Collection[str] | None) -> bool:
    """Whether one text only adds words to the other, or its replaced words are few or spelled alike.

    Args:
        words: the words of a text.
        others: those of another one.
        common: words that fill slots, where one of the texts is made from a template; they may not differ.
    """
    removed, added = subtract(words, others), subtract(others, words)
    replaced = min(len(removed), len(added))
    if common is None:
        limit = REPLACED * min(words.total(), others.total())
        return replaced <= limit or replaced - count_matches(removed, added, is_alike) <= limit
    if replaced > count_matches(removed, added, lambda one, other: is_slip(one, other, common)):
        return False
    longer = added if len(added) > len(removed) else removed
    return len(added) == len(removed) or not any(word in common for word in longer)


def subtract(words: Counter[str], others: Counter[str]) -> list[str]:
    """List the words of one text that another one lacks."""
    found: list[str] = []
    for word, count in words.items():
        if (surplus := count - others.get(word, 0)) > 0:
            found += [word] * surplus
    return found


def count_matches(removed: Sequence[str], added: Sequence[str], matches: Callable[[str, str], bool]) -> int:
    """Count the words of one text that match one of the other; each word is matched once."""
    left, count = list(added), 0
    for word in removed:
        match = next((other for other in left if matches(word, other)), None)
        if match is not None:
            left.remove(match)
            count += 1
    return count


def is_alike(word: str, other: str) -> bool:
    """Whether two different words may be spellings of one: they share an end and most of their letters."""
    if min(len(word), len(other)) < 2 or (word[0] != other[0] and word[-1] != other[-1]):
        return False
    return SequenceMatcher(None, word, other, autojunk=False).ratio() >= ALIKE


def is_slip(word: str, other: str, common: Collection[str]) -> bool:
    """Whether one of two different words is a rare one that a single slip makes of the other.

    A slip adds, omits or replaces a letter, or exchanges two neighbours.
    """
    if max(len(word), len(other)) < LEAST_LETTERS or (word in common and other in common):
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    for left, right in ((1, 0), (0, 1), (1, 1)):
        if word[start + left :] == other[start + right :]:
            return True
    pair = word[start : start + 2]
    return len(pair) == 2 and pair[::-1] + word[start + 2 :] == other[start:]


def compute_jaccard(one: str, other: str) -> float:
    """Return the Jaccard similarity of the shingles of two texts."""
    left, right = set(iterate_shingles(one)), set(iterate_shingles(other))
    return len(left & right) / len(left | right)


def iterate_shingles(text: str) -> Iterator[str]:
    """Iterate over the shingles of a text, padded as for its signature."""
    padded = f"{' ' * (SHINGLE - 1)}{shorten(text)}{' ' * (SHINGLE - 1)}"
    return (padded[i : i + SHINGLE] for i in range(len(padded) - SHINGLE + 1))
