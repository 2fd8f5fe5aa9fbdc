"""Reward models: scores as transformers computes them for a single answer, whatever the batch."""

import shutil

import pytest
import torch
from support import tiny_models
from support.classifiers import make_classifier, make_encoder, make_pair_tokenizer, make_roberta, save
from support.refusals import refused

from dpo_lightning.comparison.judges.reward_model import RewardModelJudge
from dpo_lightning.data.examples import Origin
from dpo_lightning.errors import ExitCode
from dpo_lightning.models.reward_model import RewardModel

CPU = torch.device("cpu")
PROMPTS = ["Hello?", [{"role": "user", "content": "수도는?"}], "What is 46?"]
ANSWERS = ["Hi.", "서울입니다. " * 9, ""]
ORIGINS = [Origin("rows.jsonl", line) for line in (1, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward"), make_classifier())


def expected(model, ids, **more):
    """The score of a single answer, as its model alone gives it."""
    rows = {"input_ids": ids, **more}
    with torch.no_grad():
        return model(**{name: torch.tensor([row]) for name, row in rows.items()}).logits.item()


@pytest.mark.parametrize("pad", [None, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_scores_are_those_of_single_answers(tmp_path, pad, batch_size):
    """Also where the padding token ends every answer, as in ChatML (id 2)."""
    classifier = make_classifier(pad=pad)
    path = save(tmp_path / "reward", classifier)
    tokenizer = tiny_models.make_chat_tokenizer()
    chats = [
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": ANSWERS[0]}],
        [{"role": "user", "content": "수도는?"}, {"role": "assistant", "content": ANSWERS[1]}],
        [{"role": "user", "content": "What is 46?"}, {"role": "assistant", "content": ANSWERS[2]}],
    ]
    rows = [tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False) for chat in chats]
    found = RewardModelJudge(RewardModel(path, CPU), batch_size).score(PROMPTS, ANSWERS, ORIGINS)
    assert found == pytest.approx([expected(classifier, row) for row in rows], abs=1e-5)
    assert len(set(found)) == 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_encoder_without_a_chat_template_reads_two_texts(tmp_path, batch_size):
    """As `model(**tokenizer(prompt, answer))`: with segment ids that tell the answer from the prompt."""
    encoder, tokenizer = make_encoder(), make_pair_tokenizer()
    path = save(tmp_path / "reward", encoder, tokenizer)
    texts = zip(["Hello?", "수도는?", "What is 46?"], ANSWERS, strict=True)
    rows = [dict(tokenizer(prompt, answer)) for prompt, answer in texts]
    assert set(rows[0]["token_type_ids"]) == {0, 1}
    found = RewardModelJudge(RewardModel(path, CPU), batch_size).score(PROMPTS, ANSWERS, ORIGINS)
    assert found == pytest.approx([expected(encoder, row.pop("input_ids"), **row) for row in rows], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_segment_ids_of_the_tokenizer_that_the_model_lacks(tmp_path, batch_size):
    """A decoder has no segments, and RoBERTa one."""
    tokenizer = make_pair_tokenizer()
    for name, model in (("decoder", make_classifier()), ("roberta", make_roberta())):
        rows = [
            tokenizer(prompt, answer)["input_ids"]
            for prompt, answer in zip(["Hello?", "수도는?", "What is 46?"], ANSWERS, strict=True)
        ]
        judge = RewardModelJudge(RewardModel(save(tmp_path / name, model, tokenizer), CPU), batch_size)
        assert judge.score(PROMPTS, ANSWERS, ORIGINS) == pytest.approx([expected(model, row) for row in rows], abs=1e-5)


def test_positions_that_begin_after_the_padding(tmp_path):
    """RoBERTa's position ids begin at `pad_token_id + 1`, so that many of its positions are not for rows."""
    roberta = make_roberta()
    model = RewardModel(save(tmp_path / "reward", roberta, tiny_models.make_tokenizer()), CPU)
    longest = roberta.config.max_position_embeddings - roberta.config.pad_token_id - 1
    row = [7] * longest
    assert model.score([{"input_ids": row}]) == pytest.approx([expected(roberta, row)], abs=1e-5)
    said = refused(model.score, [{"input_ids": [*row, 7]}], code=ExitCode.DATA)
    assert f"have {longest + 1} tokens, the reward model {longest} positions" in said


@pytest.mark.parametrize(
    ("template", "code", "said"),
    [
        ("{{ raise_exception('no system') if messages[0].role == 'system' else 'a' }}", ExitCode.DATA, "rows.jsonl:2"),
        ("{{ raise_exception('never') }}", ExitCode.MODEL, "fails for any chat"),
    ],
)
def test_a_template_that_rejects_a_prompt(tmp_path, template, code, said):
    """The row is named, not the folder, unless the template renders no chat at all."""
    tokenizer = tiny_models.make_chat_tokenizer()
    tokenizer.chat_template = template
    judge = RewardModelJudge(RewardModel(save(tmp_path / "m", make_classifier(), tokenizer), CPU))
    prompts = ["Hi", [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]]
    found = refused(judge.decide, prompts, [["a", "b"], ["a", "c"]], ORIGINS[:2], code=code)
    assert said in found
    assert "model.policy.path" not in found


def test_the_same_scores_every_time(folder):
    scores = [RewardModelJudge(RewardModel(folder, CPU), 2).score(PROMPTS, ANSWERS, ORIGINS) for _ in range(2)]
    assert scores[0] == scores[1]


def test_the_judge_names_its_model(folder):
    described = RewardModelJudge(RewardModel(folder, CPU)).describe()
    assert described["model"] == folder
    assert len(described["digest"]) == 64


def test_no_answers(folder):
    assert RewardModel(folder, CPU).score([]) == []


def test_an_answer_longer_than_the_model(folder):
    judge = RewardModelJudge(RewardModel(folder, CPU))
    assert "256 positions" in refused(judge.score, ["p"], ["long " * 400], ORIGINS[:1], code=ExitCode.DATA)


def test_two_outputs_are_refused(tmp_path):
    path = save(tmp_path / "m", make_classifier(outputs=2))
    assert "2 outputs" in refused(RewardModel, path, CPU)


def test_a_language_model_is_refused(tiny_llama, tmp_path):
    """Whatever its config says: the head would be random."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    tiny_models.change_json(folder / "config.json", id2label={"0": "LABEL_0"})
    assert "score.weight" in refused(RewardModel, str(folder), CPU)


def test_an_adapter_is_refused(trained):
    assert "adapter" in refused(RewardModel, str(trained), CPU)


def test_a_missing_folder(tmp_path):
    refused(RewardModel, str(tmp_path / "none"), CPU, code=ExitCode.INPUT_MISSING)


def test_code_and_pickles_are_refused(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    tiny_models.change_json(own / "config.json", auto_map={"AutoModelForSequenceClassification": "evil.Model"})
    refused(RewardModel, str(own), CPU)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "pickled" in refused(RewardModel, str(pickled), CPU)


def test_a_model_of_infinite_weights(tmp_path):
    classifier = make_classifier()
    classifier.score.weight.data.fill_(float("inf"))
    path = save(tmp_path / "m", classifier)
    assert "score.weight" in refused(RewardModel, path, CPU)


def test_a_model_of_infinite_scores(tmp_path):
    classifier = make_classifier()
    classifier.score.weight.data.fill_(3e38)
    judge = RewardModelJudge(RewardModel(save(tmp_path / "m", classifier), CPU))
    assert "a score of the judge is" in refused(judge.decide, PROMPTS, [ANSWERS, ANSWERS])
