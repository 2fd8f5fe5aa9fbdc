"""`infer` on a tiny model: the instruction arrives as it was typed, answers repeat, mistakes are short."""

import io
import re
import sys

import pytest
import torch
from support import tiny_models
from support.command_line import refused, run

from dpo_lightning.commands.infer import main
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.models import generation
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.generation import decode_answers
from dpo_lightning.models.streaming import AnswerStream
from dpo_lightning.terminal import escape_controls


@pytest.fixture
def asked(monkeypatch):
    """The prompts that were rendered."""
    prompts = []
    real = Renderer.encode_prompt

    def watched(self, prompt, *more):
        prompts.append(prompt)
        return real(self, prompt, *more)

    monkeypatch.setattr(Renderer, "encode_prompt", watched)
    return prompts


def infer(model, *more, instruction="안녕하세요?"):
    return run("infer", "--model", model, "--instruction", instruction, "--max_new_tokens", "8", *more)


@pytest.mark.parametrize(
    "instruction",
    ["비밀번호는 어떻게 만드나요?", "say \"hi\" and 'bye' $HOME `ls` \\n", "two\nlines", "<|im_end|> as text", "-1"],
)
def test_infer_hands_the_instruction_on_as_it_is(tiny_llama, asked, instruction):
    model = tiny_llama
    ran = run("infer", "--model", model, f"--instruction={instruction}", "--max_new_tokens", "8")
    assert (ran.code, ran.err.count("\n")) == (0, 1), ran
    assert ran.out.strip()
    assert asked == [instruction]


def test_infer_reads_standard_input(tiny_llama, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("첫 줄\n둘째 줄\n".encode()), encoding="utf-8"))
    assert infer(tiny_llama, instruction="-").code == 0
    assert asked == ["첫 줄\n둘째 줄\n"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    refused(infer(tiny_llama, instruction="-"), 65, "standard input is not UTF-8")


def test_infer_takes_a_system_message(tiny_llama, asked):
    assert infer(tiny_llama, "--system", "Be brief.").code == 0
    assert asked == [({"role": "system", "content": "Be brief."}, {"role": "user", "content": "안녕하세요?"})]


def test_infer_repeats_itself_by_seed(tiny_llama):
    """The same seed, the same answer; greedy needs none."""
    answers = {seed: infer(tiny_llama, "--seed", seed).out for seed in range(4)}
    assert len(set(answers.values())) > 1
    assert infer(tiny_llama, "--seed", "3").out == answers[3]
    greedy = {infer(tiny_llama, "--temperature", "0", "--seed", seed).out for seed in range(3)}
    assert len(greedy) == 1


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--instruction", " "], 64, "the instruction is empty"),
        (["--instruction", "\udcff"], 65, "not valid Unicode"),
        (["--instruction", "word " * 1000], 64, "the model has 256 positions at --instruction"),
        (["--max_new_tokens", "0"], 64, "max_new_tokens=0 is out of range"),
        (["--max_new_tokens", "many"], 64, "--max_new_tokens"),
        (["--temperature", "-1"], 64, "temperature=-1.0 is out of range"),
        (["--temperature", "nan"], 64, "temperature=nan is out of range"),
        (["--top_p", "0"], 64, "top_p=0.0 is out of range"),
        (["--seed", "-1"], 64, "seed=-1 is out of range"),
        (["--seed", str(2**64)], 64, "is out of range"),
        (["--template", "chatty"], 64, "--template"),
        (["--bogus", "1"], 64, "--bogus"),
        (["--model", "nowhere/at/all"], 66, "the model folder does not exist"),
    ],
)
def test_infer_refuses_in_a_few_lines(tiny_llama, more, code, said):
    refused(infer(tiny_llama, *more), code, said)


def test_infer_says_what_it_needs():
    refused(run("infer"), 64, "--model, --instruction")


def test_infer_stays_within_the_models_positions(tmp_path):
    """A model with absolute positions would end in an index error."""
    model = tiny_models.save(tmp_path / "model", tiny_models.make_gpt2(n_positions=32), tiny_models.make_tokenizer())
    ran = run("infer", "--model", model, "--instruction", "Hello there", "--temperature", "0")
    assert ran.code == 0, ran
    assert re.fullmatch(
        r"note: the model's \d+ positions limit the answer to \d+ tokens\nnote: the answer was cut .*\n", ran.err
    )


class Parts(io.StringIO):
    """A stream that keeps what it is given, part by part."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def write(self, text):
        self.parts.append(text)
        return super().write(text)


@pytest.mark.parametrize("instruction", ["안녕하세요?", "Tell me a story."])
def test_an_answer_is_written_while_it_is_generated(tiny_llama, monkeypatch, instruction):
    """In the end it is the text of all tokens together."""
    known = []
    real = generation.generate_ids

    def watched(*args):
        known.append(real(*args))
        return known[-1]

    monkeypatch.setattr(generation, "generate_ids", watched)
    out = Parts()
    monkeypatch.setattr(sys, "stdout", out)
    args = ["--model", str(tiny_llama), "--instruction", instruction, "--max_new_tokens", "60", "--temperature", "3"]
    assert main(args) == 0
    whole = decode_answers(CausalLM(str(tiny_llama)).tokenizer(), known[0])[0]
    assert out.getvalue() == escape_controls(whole) + "\n"
    assert sum(bool(part.strip()) for part in out.parts) > 5


def test_what_is_written_of_an_answer_stays_as_it_is(tiny_llama):
    """Words are written when they are complete: a token may be a part of a character."""
    tokenizer = CausalLM(str(tiny_llama)).tokenizer()
    text = "첫째, 물을 끓입니다.\n\n    그리고 the tea 🍵 is ready."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = []
    stream = AnswerStream(tokenizer, parts.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for number in ids:
        stream.put(torch.tensor([number]))
    stream.end()
    assert "".join(parts) == text
    assert len(parts) > 5
    assert not any("\ufffd" in part for part in parts)


def test_a_cut_answer_is_noted(tiny_llama):
    ran = infer(tiny_llama)
    assert ran.err == "note: the answer was cut after 8 tokens: --max_new_tokens allows more\n"
