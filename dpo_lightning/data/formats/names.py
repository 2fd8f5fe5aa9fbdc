"""Column names: what a column has (question, preferred answer, ...) by the words of its name, in several languages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from dpo_lightning.data.formats.turns import is_messages
from dpo_lightning.data.formats.words import normalize_name, split_name


def _split_names(names: str) -> frozenset[str]:
    """The names in a text, separated by commas."""
    return frozenset(name.strip() for name in names.replace("\n", ",").split(",") if name.strip())


QUESTIONS = _split_names(
    """prompt, prompts, question, questions, query, instruction, instructions, problem, request, user, human, input, q
    user prompt, user input, user query, prompt text
    질문, 문제, 질의, 지시, 지시문, 프롬프트, 명령, 명령어, 입력, 요청
    質問, 問題, 指示, プロンプト, 入力, 问题, 指令, 提示, 提问, 提示词
    câu hỏi, cau hoi, yêu cầu, soru, istem, talimat, pergunta, instrução, pregunta, frage, vraag"""
)
"""Names of the column that has the question."""

INPUTS = _split_names("input, 입력, 输入, 入力")
"""Names of the text that an instruction is about, and of a question where there is no instruction."""

ANSWERS = _split_names(
    """response, responses, answer, answers, output, outputs, completion, completions, reply, assistant, solution
    generation, generations, candidate, candidates, target
    답변, 응답, 대답, 답, 출력, 정답, 해설, 回答, 答え, 応答, 出力, 答案, 回复, 输出
    câu trả lời, trả lời, cau tra loi, cevap, yanıt, resposta, respuesta, antwort"""
)
"""Names of a column with answers; also the words that say nothing about which of two answers it has."""

FILLERS = ANSWERS | _split_names(
    "text, texts, message, messages, content, conversation, resp, the, is, more, 내용, câu, trả, lời"
)

BETTER = _split_names(
    """chosen, preferred, accepted, better, best, winner, winning, positive, pos, good, favored, favoured
    선택, 선택된, 선호, 선호된, 선호하는, 채택, 채택된, 좋은, 긍정, 승자
    優れた, 良い, 採用, 好, 优选, 优, 选中, 更好, được chọn, chọn, tercih, tercih edilen, seçilen
    preferida, escolhida, escolhido, preferido, boa, tốt, 好的, 选择的, win, wins"""
)
WORSE = _split_names(
    """rejected, reject, dispreferred, unpreferred, nonpreferred, disfavored, worse, worst, loser, losing, negative, neg
    bad, unchosen, 거절, 거절된, 거부, 거부된, 비선호, 비선호된, 나쁜, 부정, 기각, 기각된, 탈락, 패자
    劣った, 悪い, 却下, 差, 拒绝, 落选, 更差, bị từ chối, từ chối, reddedilen, rejeitada, rejeitado
    ruim, xấu, 差的, 拒绝的, lose, loses"""
)
NEGATIONS = _split_names("non, not, un, less, least, dis, never, no, 미, 비, 안, không")
"""Words that turn the meaning of the others round: `non_preferred_output` is the worse answer."""

MEANINGS = {**dict.fromkeys(BETTER, "better"), **dict.fromkeys(WORSE, "worse"), **dict.fromkeys(NEGATIONS, "not")}

VERDICTS = _split_names(
    """winner, label, labels, preference, preferred, verdict, choice, better, chosen, winner model, chosen index, best
    preferred index, preferred answer id, better response id, winner index, human preference, overall preference
    preference strength, which is better, selected, result
    선호, 선택, 승자, 판정, 선호도, 우승, 结果, 偏好, 勝者"""
)
"""Names of the column that says which of two answers is better."""

SCORES = _split_names("scores, score, ratings, rating, rewards, reward, 점수, 평점, 得分, スコア")
RANKS = _split_names("rank, ranks, ranking, rankings, 순위, 排名, 順位")
LABELS = _split_names(
    """label, labels, thumb, thumbs, thumbs up, kto tag, liked, like, is good, good, desirable, is desirable, feedback
    upvoted, accepted, 평가, 좋아요, 라벨, 评价, 評価"""
)
"""Names of the column that judges one answer."""

TRAITS = _split_names(
    "safe, is safe, correct, is correct, helpful, is helpful, harmful, is harmful, toxic, is toxic, valid"
)
"""Names of columns that judge an answer by one trait, so that it is not clear which value is good."""

JUDGEMENTS = {
    **dict.fromkeys(("true", "1", "good", "yes", "chosen", "desirable", "like", "thumbs_up", "👍", "좋음"), True),
    **dict.fromkeys(("false", "0", "-1", "bad", "no"), False),
    **dict.fromkeys(("rejected", "undesirable", "dislike", "thumbs_down", "👎", "나쁨"), False),
}
"""Values of a label that judge one answer -> whether it is good. Any other value is the name of a category."""


@lru_cache(1024)
def find_preference(name: str) -> str:
    """`chosen` or `rejected` if the words of a name say that the column has this answer of a pair; otherwise "".

    Words that name neither, such as `score` or `model`, describe something else than the answer.
    """
    words = [_strip_filler(word) for word in split_name(name) if word not in FILLERS]
    whole = " ".join(words)
    if whole in BETTER or whole in WORSE:
        return "chosen" if whole in BETTER else "rejected"
    kinds = {MEANINGS.get(word, "") for word in words}
    if kinds in ({"better"}, {"not", "worse"}):
        return "chosen"
    return "rejected" if kinds in ({"worse"}, {"not", "better"}) else ""


def _strip_filler(word: str) -> str:
    """A word of a language without spaces, without the word for an answer at its end: `良い` of `良い回答`."""
    ends = (filler for filler in FILLERS if not filler.isascii() and word.endswith(filler))
    return word.removesuffix(max(ends, key=len, default=""))


def has_negation(name: str) -> bool:
    """Whether a word of a name turns the others round, as in `not_chosen`."""
    return any(word in NEGATIONS for word in split_name(name))


def normalize_label(value: Any) -> str:
    """A label in the spelling of the keys of `JUDGEMENTS`: '+1', 1.0 and True become '1', '1' and 'true'."""
    word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
    return word.removeprefix("+").removesuffix(".0")


def match_names(values: Iterable[str], names: Collection[str]) -> list[str]:
    """The columns whose name is one of `names`, which are normalized."""
    return [name for name in values if normalize_name(name) in names]


def has_words(value: Any) -> bool:
    """Whether a value contains text to read, not a short token such as `b`, a number or the name of a model."""
    if isinstance(value, str):
        return len(value.split()) > 2 or sum(not char.isascii() and char.isalpha() for char in value) > 5
    if isinstance(value, dict):
        return any(map(has_words, value.values()))
    return isinstance(value, (list, tuple)) and any(map(has_words, value))


def find_questions(values: Mapping[str, Any]) -> list[str]:
    """The columns that by name and content may have the question of a row: text, or messages."""
    named = [name for name in match_names(values, QUESTIONS) if isinstance(values[name], (str, list)) and values[name]]
    return named or [name for name, value in values.items() if is_messages(value) and not find_preference(name)]


def find_question(values: Mapping[str, Any]) -> str:
    """The column with the question; beside an instruction, `input` belongs to it. "" for none or several."""
    found = [name for name in match_names(values, QUESTIONS) if isinstance(values[name], (str, list))]
    if "prompt" in found:
        return "prompt"
    if len(found) > 1:
        found = [name for name in found if normalize_name(name) not in INPUTS]
    return found[0] if len(found) == 1 else ""


def find_other_question(values: Mapping[str, Any], answers: Collection[str]) -> str:
    """The column with the question among those that are not `answers`; "" for none or several."""
    rest = {name: value for name, value in values.items() if name not in answers}
    found = find_questions(rest)
    return find_question(rest) or (found[0] if len(found) == 1 else "")


def find_answer(values: Mapping[str, Any]) -> str:
    """The column with the only answer, a string or a message; "" for none or several."""
    found = [name for name in match_names(values, ANSWERS) if isinstance(values[name], (str, dict))]
    return found[0] if len(found) == 1 else ""
