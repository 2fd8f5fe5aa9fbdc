"""Clean preference pairs in six languages, made by a seed, and faults to plant among them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.pairs import PairExample

Pair = dict[str, str]


class Language(NamedTuple):
    """What prompts and answers of a language are made of; `{0}` and `{1}` of a template are a thing and a place."""

    templates: list[str]
    things: str
    places: str
    words: str
    end: str
    space: str = " "

    def prompts(self) -> list[str]:
        """Every template with every thing and place."""
        things, places = self.things.split(","), self.places.split(",")
        return [template.format(thing, place) for template in self.templates for thing in things for place in places]


ENGLISH = Language(
    [
        "How do I repair {0} without help {1}?",
        "Write a short story about {0} and a storm {1}.",
        "What should a beginner know of {0} before a visit {1}?",
        "Give me three reasons to keep {0} {1}.",
        "Compare {0} with what people used a century ago {1}!",
        "Why is it so hard to find {0} {1}?",
        "Describe {0} to a child who has never been {1}.",
        "Who would pay for {0} {1}, and how much?",
    ],
    "a bicycle,an old clock,a kettle,wild honey,a violin,a tent,fresh basil,a lantern,a kite,black tea,a canoe,a rug,"
    "a compass,rye bread,a ladder,a puppet,a mirror,sea salt,a telescope,a hammock",
    "in the mountains,near the harbour,at a village school,on a small island,under a bridge,in a crowded city,"
    "beside the railway,at the edge of a desert,in a quiet library,on the roof,behind the theatre,at sea,in winter,"
    "during a long strike,after sunset,on a rainy market day,inside a museum,along the canal",
    "first then slowly careful people gather their tools near open window while another neighbour measures wood paper "
    "glass water until everything dries evenly because patience matters more than speed clean cloth sharp knife warm "
    "light keeps mistakes small remember every step before moving forward again",
    ".",
)
KOREAN = Language(
    [
        "{1} {0} 고치는 방법을 알려 주세요.",
        "{1} {0} 처음 쓰는 사람은 무엇을 조심해야 하나요?",
        "{0} 주제로 {1} 벌어지는 짧은 이야기를 써 줘.",
        "{1} {0} 구하기 어려운 까닭이 궁금합니다.",
    ],
    "자전거를,벽시계를,주전자를,바이올린을,텐트를,등불을,나침반을,사다리를,거울을,망원경을,인형을,돗자리를",
    "산속에서,항구에서,시골 학교에서,작은 섬에서,다리 밑에서,붐비는 도시에서,철길 옆에서,조용한 도서관에서,옥상에서,"
    "극장 뒤에서,겨울 바다에서,박물관 안에서,장마철 시장에서,운하를 따라",
    "먼저 천천히 도구를 모으고 창가에서 나무와 종이를 재어 둔 다음 물기가 마를 때까지 기다리면 실수가 줄어듭니다 "
    "서두르지 말고 깨끗한 천과 밝은 빛을 준비하며 이웃의 도움을 받아 차례를 기억하세요",
    ".",
)
RUSSIAN = Language(
    [
        "Как починить {0} без помощи {1}?",
        "Напиши короткий рассказ про {0} {1}.",
        "Что новичку стоит знать про {0} {1}?",
        "Почему так трудно найти {0} {1}?",
    ],
    "велосипед,старые часы,чайник,скрипку,палатку,фонарь,компас,лестницу,зеркало,телескоп,куклу,гамак",
    "в горах,у гавани,в сельской школе,на острове,под мостом,в шумном городе,у железной дороги,в библиотеке,на крыше,"
    "за театром,зимой,в музее,после заката,вдоль канала",
    "сначала медленно соберите инструменты возле окна потом измерьте дерево бумагу стекло воду пока всё не высохнет "
    "ровно терпение важнее скорости чистая ткань острый нож тёплый свет помните каждый шаг прежде чем идти дальше",
    ".",
)
JAPANESE = Language(
    [
        "{1}{0}を直すにはどうすればよいですか。",
        "{1}{0}についての短い物語を書いてください。",
        "{1}{0}が見つからないのはなぜでしょうか。",
    ],
    "自転車,古い時計,やかん,バイオリン,テント,ランタン,羅針盤,はしご,鏡,望遠鏡,人形,ハンモック",
    "山の中で,港の近くで,村の学校で,小さな島で,橋の下で,にぎやかな町で,線路のそばで,静かな図書館で,屋上で,冬の海で,"
    "博物館の中で,運河に沿って",
    "まず ゆっくり 道具を 集めて 窓の そばで 木と 紙を 測り 水が 乾くまで 待てば 失敗は 少なく なります "
    "急がずに きれいな 布と 明るい 光を 用意して 順番を 覚えて ください",
    "。",
    "",
)
CHINESE = Language(
    ["怎样{1}修理{0}？", "请写一个{1}关于{0}的短故事。", "为什么{1}很难找到{0}？"],
    "自行车,旧钟表,水壶,小提琴,帐篷,灯笼,指南针,梯子,镜子,望远镜,木偶,吊床",
    "在山里,在港口附近,在乡村学校,在小岛上,在桥下,在热闹的城市,在铁路旁,在安静的图书馆,在屋顶上,在冬天的海边,"
    "在博物馆里,沿着运河",
    "首先 慢慢 收集 工具 靠近 窗户 测量 木头 纸张 玻璃 直到 完全 干燥 耐心 比 速度 重要 干净的 布 明亮的 光 "
    "让 错误 变少 记住 每个 步骤 再 继续",
    "。",
    "",
)
ARABIC = Language(
    ["كيف أصلح {0} وحدي {1}؟", "اكتب قصة قصيرة عن {0} {1}.", "لماذا يصعب العثور على {0} {1}؟"],
    "الدراجة,الساعة القديمة,الإبريق,الكمان,الخيمة,الفانوس,البوصلة,السلم,المرآة,التلسكوب,الدمية,الأرجوحة",
    "في الجبال,قرب الميناء,في مدرسة القرية,على جزيرة صغيرة,تحت الجسر,في مدينة مزدحمة,بجانب السكة,في مكتبة هادئة,"
    "على السطح,في الشتاء,داخل المتحف,على طول القناة",
    "أولا اجمع الأدوات ببطء قرب النافذة ثم قس الخشب والورق والزجاج حتى يجف كل شيء بالتساوي الصبر أهم من السرعة "
    "قماش نظيف وضوء دافئ يقلل الأخطاء تذكر كل خطوة قبل المتابعة",
    ".",
)
LANGUAGES = (ENGLISH, KOREAN, RUSSIAN, JAPANESE, CHINESE, ARABIC)


def make_clean_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Different prompts, each with two answers of its language; neither answer is the longer one more often."""
    draw = random.Random(seed)
    prompts = [(prompt, language) for language in LANGUAGES for prompt in language.prompts()]
    draw.shuffle(prompts)
    assert count <= len(prompts)
    return [
        {"prompt": prompt, "chosen": make_answer(language, draw), "rejected": make_answer(language, draw)}
        for prompt, language in prompts[:count]
    ]


def make_answer(language: Language, draw: random.Random) -> str:
    """Two to four sentences of random words."""
    sentences = (
        language.space.join(draw.choices(language.words.split(), k=draw.randrange(6, 15))) + language.end
        for _ in range(draw.randrange(2, 5))
    )
    return language.space.join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


def write_rows(path: Path, rows: list[Any]) -> str:
    """Write rows as JSON lines, so that row `i` is on line `i + 1`; return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pick(rows: list[Pair], count: int, seed: int, *, latin: bool = False) -> list[int]:
    """Draw indices of rows whose prompts consist of several words, or of Latin letters."""
    fit = [i for i, row in enumerate(rows) if (row["prompt"].isascii() if latin else row["prompt"].count(" ") > 3)]
    return sorted(random.Random(seed).sample(fit, count))


def plant(rows: list[Pair], fault: str, count: int = 25, seed: int = 1) -> tuple[list[Pair], list[tuple[int, ...]]]:
    """Plant a fault of `FAULTS` in a copy of clean rows; return them, and the lines of each planted fault."""
    change, kind = FAULTS[fault]
    rows = [dict(row) for row in rows]
    draw, places = random.Random(seed), []
    drawn = pick(rows, 2 * count, seed, latin=kind == "latin")
    for one, other in zip(drawn[::2], drawn[1::2], strict=True):
        changed = change(rows[one], draw)
        target = one if kind in ("alone", "latin") else other
        rows[target] = changed
        places.append((target + 1,) if target == one else (other + 1, one + 1))
    return rows, places


def swap_letters(row: Pair, draw: random.Random) -> Pair:
    """Exchange two different neighbours within the longest word of the prompt, and give it other answers."""
    words = row["prompt"].split(" ")
    k = max(range(len(words)), key=lambda i: (len(words[i]), i))
    i = next(i for i in range(1, len(words[k]) - 1) if words[k][i] != words[k][i + 1])
    words[k] = words[k][:i] + words[k][i + 1] + words[k][i] + words[k][i + 2 :]
    return answer_anew({**row, "prompt": " ".join(words)}, draw)


def respell(row: Pair) -> str:
    """The prompt with other case, white space and punctuation."""
    return "  " + row["prompt"].upper().replace(" ", "  ").rstrip(".?؟!") + " ..."


def answer_anew(row: Pair, draw: random.Random) -> Pair:
    """The row with two other answers, of the language of the chosen one."""
    language = next(known for known in LANGUAGES if set(row["chosen"].lower().split()) & set(known.words.split()))
    return {**row, "chosen": make_answer(language, draw), "rejected": make_answer(language, draw)}


FAULTS: dict[str, tuple[Any, str]] = {
    "equal_answers": (lambda row, draw: {**row, "rejected": row["chosen"]}, "alone"),
    "repeated": (lambda row, draw: dict(row), "copy"),
    "contradiction": (lambda row, draw: {**row, "chosen": row["rejected"], "rejected": row["chosen"]}, "copy"),
    "nearly_equal_answers": (
        lambda row, draw: {**row, "rejected": row["chosen"].swapcase().replace(" ", "  ") + "!"},
        "alone",
    ),
    "copied_prompts": (lambda row, draw: {**row, "chosen": row["prompt"] + "\n" + row["chosen"]}, "alone"),
    "other_scripts": (
        lambda row, draw: {**row, "chosen": make_answer(KOREAN, draw), "rejected": make_answer(KOREAN, draw)},
        "latin",
    ),
    "respelled_prompts": (lambda row, draw: answer_anew({**row, "prompt": respell(row)}, draw), "copy"),
    "near_duplicate_prompts": (swap_letters, "copy"),
    "near_repeated_rows": (lambda row, draw: {**row, "prompt": respell(row)}, "copy"),
    "near_contradictions": (
        lambda row, draw: {"prompt": respell(row), "chosen": row["rejected"], "rejected": row["chosen"]},
        "copy",
    ),
}
"""Name of a fault -> how it is made of a row, and the row that it replaces."""


def make_examples(texts: list[tuple[str, str, str]]) -> list[PairExample]:
    """Make an example of each prompt with its chosen and rejected answer, on lines counted from 1."""
    return [
        PairExample(Origin("rows", line), prompt, (chosen, rejected))
        for line, (prompt, chosen, rejected) in enumerate(texts, 1)
    ]
