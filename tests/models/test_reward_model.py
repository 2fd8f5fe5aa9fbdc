"""Reward models: scores as transformers computes them for a single answer, whatever the batch."""

import shutil

import pytest
import torch
from support import tiny_models
from support.classifiers import make_classifier, make_encoder, save
from support.refusals import refused

from dpo_lightning.comparison.judges.reward_model import RewardModelJudge
from dpo_lightning.errors import ExitCode
from dpo_lightning.models.reward_model import RewardModel

CPU = torch.device("cpu")
PROMPTS = ["Hello?", [{"role": "user", "content": "수도는?"}], "What is 46?"]
ANSWERS = ["Hi.", "서울입니다. " * 9, ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("reward"), make_classifier())


def expected(model, ids):
    """The score of a single answer, as its model alone gives it."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


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
    found = RewardModelJudge(RewardModel(path, CPU), batch_size).score(PROMPTS, ANSWERS)
    assert found == pytest.approx([expected(classifier, row) for row in rows], abs=1e-5)
    assert len(set(found)) == 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_encoder_without_a_chat_template_reads_two_texts(tmp_path, batch_size):
    encoder, tokenizer = make_encoder(), tiny_models.make_tokenizer()
    path = save(tmp_path / "reward", encoder, tokenizer)
    texts = zip(["Hello?", "수도는?", "What is 46?"], ANSWERS, strict=True)
    rows = [tokenizer(prompt, answer)["input_ids"] for prompt, answer in texts]
    found = RewardModelJudge(RewardModel(path, CPU), batch_size).score(PROMPTS, ANSWERS)
    assert found == pytest.approx([expected(encoder, row) for row in rows], abs=1e-5)


def test_the_same_scores_every_time(folder):
    scores = [RewardModelJudge(RewardModel(folder, CPU), 2).score(PROMPTS, ANSWERS) for _ in range(2)]
    assert scores[0] == scores[1]


def test_the_judge_names_its_model(folder):
    described = RewardModelJudge(RewardModel(folder, CPU)).describe()
    assert described["model"] == folder
    assert len(described["digest"]) == 64


def test_no_answers(folder):
    assert RewardModel(folder, CPU).score([]) == []


def test_an_answer_longer_than_the_model(folder):
    judge = RewardModelJudge(RewardModel(folder, CPU))
    assert "256 positions" in refused(judge.score, ["p"], ["long " * 400], code=ExitCode.DATA)


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
