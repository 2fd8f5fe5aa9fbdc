"""Generation: the answer depends on prompt, model and seed, and on nothing else; training goes on as if none was."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from support import short_runs, tiny_models
from support.batch_layouts import read_back
from support.command_line import refused, run

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.generation import SampleByPrompt, answer, generate_ids
from dpo_lightning.sampling import Sampling

STOPS = frozenset([0, 2])
GREEDY = Sampling(max_new_tokens=12, temperature=0)
PROMPTS = ([40], [7, 300, 41, 9, 11], [5] * 30, [60, 61, 62])


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    """A model with rotary positions and one with absolute ones, which padding shifts."""
    return tiny_models.make_llama() if request.param == "llama" else tiny_models.make_gpt2()


def alone(model, tokenizer, prompt, steps=12):
    """The likeliest answer, a token at a time and without a cache."""
    ids = torch.tensor([prompt])
    for _ in range(steps):
        best = model.eval()(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best[None, None]], dim=1)
        if int(best) in STOPS:
            break
    return tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()


def test_prompts_of_different_lengths_share_a_batch(model, chat_tokenizer):
    expected = [alone(model, chat_tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(expected)) >= 3
    assert answer(model, chat_tokenizer, PROMPTS, GREEDY, STOPS) == expected
    for prompt, text in zip(PROMPTS, expected, strict=True):
        assert answer(model, chat_tokenizer, [prompt], GREEDY, STOPS) == [text]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_scores_that_are_no_numbers_are_refused(model, chat_tokenizer, temperature):
    """The likeliest of them would be the token with id 0, and a draw a bug's exit code."""
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = torch.nan
    with pytest.raises(UserError, match="no numbers") as told:
        answer(model, chat_tokenizer, PROMPTS, Sampling(max_new_tokens=4, temperature=temperature), STOPS)
    assert told.value.code == ExitCode.MODEL


def favouring(model, token):
    """The model, made to say one token whatever the prompt."""
    head = torch.nn.Linear(16, model.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 5
    model.set_output_embeddings(head)
    return model


@pytest.mark.parametrize("stop", [0, 2])
def test_every_end_id_ends_an_answer(stop, model, chat_tokenizer):
    ended = favouring(model, stop)
    calls = []
    ended.register_forward_hook(lambda *_: calls.append(1))
    assert answer(ended, chat_tokenizer, PROMPTS, GREEDY, STOPS) == [""] * len(PROMPTS)
    assert len(calls) == 1
    assert answer(ended, chat_tokenizer, [[7]], GREEDY, STOPS - {stop}) == [""]  # control tokens are not shown
    assert len(calls) == 1 + GREEDY.max_new_tokens


def test_the_seed_decides(model, chat_tokenizer):
    def draw(seed):
        return answer(model, chat_tokenizer, PROMPTS, Sampling(12, temperature=1.0, seed=seed), STOPS)

    first = draw(0)
    torch.manual_seed(123)
    assert draw(0) == first
    assert draw(1) != first


def test_a_small_top_p_takes_the_likeliest(model, chat_tokenizer):
    sampling = Sampling(12, temperature=1.0, top_p=1e-6, seed=3)
    assert answer(model, chat_tokenizer, PROMPTS, sampling, STOPS) == answer(
        model, chat_tokenizer, PROMPTS, GREEDY, STOPS
    )


def test_the_random_state_is_left_alone(model, chat_tokenizer):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    answer(model, chat_tokenizer, PROMPTS, Sampling(12, seed=5), STOPS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training, chat_tokenizer):
    model = tiny_models.make_gpt2(dropout=0.5).train(training)
    expected = [alone(tiny_models.make_gpt2(), chat_tokenizer, prompt) for prompt in PROMPTS]
    assert answer(model, chat_tokenizer, PROMPTS, GREEDY, STOPS) == expected
    assert {part.training for part in model.modules()} == {training}
    with pytest.raises(UserError):
        answer(model, chat_tokenizer, [[3]], GREEDY, frozenset(["none"]))
    assert model.training == training


def test_the_models_weights_can_go_on_learning(tiny_gpt2, chat_tokenizer, tmp_path):
    made = short_runs.ready(tiny_gpt2, lora=Lora(r=2), gradient_checkpointing=True)
    pairs = short_runs.batch(made, short_runs.write_pairs(tmp_path / "pairs.jsonl"))
    with made.reference.as_model(made.policy) as base:
        answer(base, chat_tokenizer, PROMPTS, GREEDY, STOPS)
    answer(made.policy, chat_tokenizer, PROMPTS, GREEDY, STOPS)
    short_runs.take_steps(made, pairs, 1)
    moved = [value for name, value in made.policy.named_parameters() if "lora_B" in name]
    assert moved
    assert all(value.any() for value in moved)


def test_no_more_tokens_than_the_model_has_positions(chat_tokenizer):
    model = favouring(tiny_models.make_gpt2(), 40)  # 256 positions, beyond which lies nothing
    word = chat_tokenizer.decode([40])
    assert answer(model, chat_tokenizer, [[7] * 250], GREEDY, STOPS) == [word * 6]
    with pytest.raises(UserError, match="a prompt has 256 tokens, the model 256 positions") as raised:
        answer(model, chat_tokenizer, [[7], [7] * 256], GREEDY, STOPS)
    assert raised.value.code == ExitCode.DATA


def test_a_long_prompt_does_not_cut_the_answers_of_others(model):
    """Each answer may be as long as the positions that its own prompt leaves."""
    long, never = [7] * 250, frozenset([479])
    alone = [generate_ids(model, [prompt], GREEDY, never)[0] for prompt in ([40], long, [41])]
    assert [len(ids) for ids in alone] == [12, 6, 12]
    assert generate_ids(model, [[40], long, [41]], GREEDY, never) == alone


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 2}]
)
def test_ranges(options):
    with pytest.raises(UserError, match="out of range") as raised:
        Sampling(**options)
    assert raised.value.code == ExitCode.CONFIG


PLAIN = {"prompt": "What is 46?", "chosen": " A number.", "rejected": " Nothing."}
CHAT = {
    "prompt": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is 46?"},
    ],
    "chosen": [{"role": "assistant", "content": "A number."}],
    "rejected": [{"role": "assistant", "content": "Nothing."}],
}


def double(prompt):
    """Another prompt of the same kind."""
    if isinstance(prompt, str):
        return prompt * 2
    return [*prompt, {"role": "assistant", "content": "So"}, {"role": "user", "content": "What?"}]


WITH_BOS = "{{ bos_token }}" + tiny_models.CHATML


@pytest.mark.parametrize(
    ("row", "template"),
    [(PLAIN, None), (PLAIN, tiny_models.CHATML), (PLAIN, WITH_BOS), (CHAT, tiny_models.CHATML), (CHAT, WITH_BOS)],
)
def test_prompts_are_those_of_training(row, template, tmp_path):
    # A BOS that the tokenizer adds to what a template wrote is seen in generation only, or in training only.
    tokenizer = tiny_models.make_tokenizer(template=template, eos=tiny_models.END, prepends_bos=True)
    folder = tiny_models.save(tmp_path / "model", tiny_models.make_llama(), tokenizer)
    made = short_runs.ready(folder)
    other = {"prompt": double(row["prompt"]), "chosen": row["rejected"], "rejected": row["chosen"]}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    pairs = short_runs.batch(made, tmp_path / "pairs.jsonl", rows=1)
    builder = CausalLM(str(folder))
    renderer = Renderer(builder.tokenizer(), "auto", "neutralize", builder.end_ids())
    ids = renderer.encode_prompt(row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"]))
    for sequence in read_back(pairs):
        assert sequence[0][0] == ids  # what the first scored token is predicted from
    begin = tokenizer.bos_token_id
    assert ids.count(begin) == (0 if template == tiny_models.CHATML else 1)
    assert renderer.stops == {tokenizer.eos_token_id}


def test_an_answer_does_not_depend_on_the_other_prompts(model):
    """Drawn at temperature 1 in float32: alone, in a batch, and in a batch of another order."""
    sampling = Sampling(12, temperature=1.0, seed=3)
    alone = [generate_ids(model, [prompt], sampling, STOPS)[0] for prompt in PROMPTS]
    assert len(set(map(tuple, alone))) == len(PROMPTS)
    assert generate_ids(model, PROMPTS, sampling, STOPS) == alone
    assert generate_ids(model, PROMPTS[::-1], sampling, STOPS) == alone[::-1]
    assert all(len(ids) == 12 or ids[-1] in STOPS for ids in alone)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_p):
    """20,000 prompts with the same scores: Pearson's chi-squared test against the softmax, cut at top_p."""
    count = 20_000
    scores = torch.tensor([1.0, 0.3, -0.5, 2.0, -1.0, float("-inf")])
    prompts = [[place] for place in range(count)]
    draw = SampleByPrompt(Sampling(1, temperature, top_p, seed=1), prompts, torch.device("cpu"))
    tokens = draw(torch.tensor(prompts), scores.expand(count, -1)).argmax(1)
    expected = (scores.double() / temperature).softmax(0)
    order = expected.argsort(descending=True)
    outside = order[expected[order].cumsum(0) - expected[order] >= top_p]
    expected[outside] = 0
    expected /= expected.sum()
    found = torch.bincount(tokens, minlength=len(scores))
    assert not found[expected == 0].any()
    kept = expected > 0
    assert chisquare(found[kept].numpy(), (expected[kept] * count).numpy()).pvalue > 1e-3


def test_compiled_layers_answer_uncompiled(tiny_llama, chat_tokenizer):
    """They would be compiled again for every length of the cache."""
    model = CausalLM(str(tiny_llama)).build()
    expected = answer(model, chat_tokenizer, [[5, 6, 7]], Sampling(4, temperature=0), frozenset([2]))
    compiled = []
    for layer in model.model.layers:
        layer.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    assert answer(model, chat_tokenizer, [[5, 6, 7]], Sampling(4, temperature=0), frozenset([2])) == expected
    assert not compiled
    model(torch.tensor([[5, 6, 7]]))
    assert compiled


@pytest.mark.parametrize(
    "changes", [{"num_beams": 10**6}, {"num_beam_groups": 2}, {"penalty_alpha": 0.6, "top_k": 4}, {"top_k": 1}]
)
def test_a_folders_search_is_not_used(tiny_llama, tmp_path, changes):
    """`temperature` 0 takes the likeliest token; a folder could ask for any amount of memory."""
    folder = with_generation_config(tiny_llama, tmp_path, changes)
    args = ("infer", "--instruction", "hi", "--max_new_tokens", 3, "--temperature", 0, "--model")
    assert run(*args, folder) == run(*args, tiny_llama)


@pytest.mark.parametrize(
    "changes",
    [
        {"dola_layers": "high"},
        {"stop_strings": ["x"]},
        {"num_return_sequences": 10**6},
        {"suppress_tokens": ["x"]},
        {"begin_suppress_tokens": "x"},
        {"repetition_penalty": "x"},
        {"bos_token_id": "x"},
    ],
)
def test_what_a_folder_may_not_ask_for_is_refused(tiny_llama, tmp_path, changes):
    folder = with_generation_config(tiny_llama, tmp_path, changes)
    ran = run("infer", "--instruction", "hi", "--max_new_tokens", 3, "--temperature", 0, "--model", folder)
    refused(ran, 67, "generation_config.json", str(folder))


def with_generation_config(model, tmp_path, changes):
    """A copy of a model's folder with other keys in its generation config."""
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder
