"""Training with adapters and with gradient checkpointing, and what is saved: the same function when loaded again."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import short_runs, tiny_models
from transformers import AutoModelForCausalLM

from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


def lora_weights(made, kind):
    """The adapter's weights of one kind by name."""
    return {name: value for name, value in made.policy.named_parameters() if kind in name}


def gradients(made):
    """What the last backward pass left, by name; nothing where a weight got none."""
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in made.policy.named_parameters()
        if value.requires_grad
    }


def counted(made, calls):
    """Append to `calls` at every run of the first layer."""
    layers = [part for name, part in made.policy.named_modules() if name.endswith(("layers.0.mlp", "h.0.mlp"))]
    assert len(layers) == 1
    layers[0].register_forward_pre_hook(lambda *_: calls.append(1))


# Gradient checkpointing


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_an_adapter_trains_under_gradient_checkpointing(kind, file, request):
    # Without care no input of a checkpointed block needs a gradient, and the adapter silently learns nothing.
    made = short_runs.ready(request.getfixturevalue(kind), lora=Lora(r=2), gradient_checkpointing=True)
    pairs, calls = short_runs.batch(made, file), []
    counted(made, calls)
    assert not any(value.any() for value in lora_weights(made, "lora_B").values())
    short_runs.take_steps(made, pairs, 1)
    assert len(calls) == 3  # policy, reference, and the policy again in the backward pass
    behind = lora_weights(made, "lora_B")
    assert behind
    assert all(value.any() for value in behind.values())
    short_runs.take_steps(made, pairs, 1)
    left = gradients(made)
    assert len(left) == 2 * len(behind)
    assert all(gradient.any() for gradient in left.values())


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_gradient_checkpointing_changes_no_number(kind, lora, file, request):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)  # the adapter's
        made = short_runs.ready(request.getfixturevalue(kind), lora=lora, gradient_checkpointing=checkpointing)
        pairs = short_runs.batch(made, file)
        short_runs.take_steps(made, pairs, 1)  # an adapter that does something
        made.policy.zero_grad()
        calls = []
        counted(made, calls)
        losses = made.compare(pairs)[0].losses
        losses.mean().backward()
        copies = 2 if lora else 1  # a frozen copy has layers of its own
        assert len(calls) == copies + checkpointing
        results.append((losses.detach(), gradients(made)))
    (losses, expected), (again, left) = results
    assert torch.equal(losses, again)
    assert expected.keys() == left.keys()
    for name, gradient in expected.items():
        assert gradient.any() == left[name].any()
        torch.testing.assert_close(left[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_no_complaint_about_checkpointing_without_gradients(lora, tiny_gpt2, file, recwarn):
    made = short_runs.ready(tiny_gpt2, lora=lora, gradient_checkpointing=True)
    short_runs.take_steps(made, short_runs.batch(made, file))
    told = [str(warning.message) for warning in recwarn]
    assert not [text for text in told if "requires_grad" in text or "use_reentrant" in text]


DDP = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from support import short_runs
    from dpo_lightning.models.causal_lm import Lora
    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DDPStrategy
    torch.set_num_threads(1)

    class Tell(Callback):
        def on_train_end(self, trainer, pl_module):
            moved = sum(float(value.sum()) for value in pl_module.policy.parameters() if value.requires_grad)
            name = f"{{type(pl_module.reference).__name__}}-{{trainer.global_rank}}"
            Path({out!r}, name).write_text(f"{{trainer.global_step}} {{trainer.world_size}} {{moved.hex()}}")

    for lora in (None, Lora(r=2)):
        torch.manual_seed(0)
        made = short_runs.module({model!r}, lora=lora, gradient_checkpointing=True)
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
        options = dict(strategy=strategy, devices=2, enable_checkpointing=False, callbacks=[Tell()])
        short_runs.fit(made, Path({file!r}), Path({out!r}), **options)
"""


@pytest.mark.slow
def test_gradient_checkpointing_with_two_processes(tiny_gpt2, file, tmp_path):
    # Reentrant checkpointing marks a parameter ready twice, where chosen and rejected have a forward pass each.
    places = {"tests": str(Path(__file__).parents[1]), "model": str(tiny_gpt2), "file": str(file), "out": str(tmp_path)}
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DDP).format(**places))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for reference in ("FrozenCopy", "AdapterDisabled"):
        ends = [(tmp_path / f"{reference}-{rank}").read_text() for rank in range(2)]
        assert ends[0] == ends[1]  # both processes hold the same weights
        assert ends[0].startswith("2 2 ")


# Saving


def saved(made, folder, base):
    """Save a policy as a run's end does."""
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(base))
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [tiny_models.make_llama, tiny_models.make_gpt2])
def test_a_whole_model_is_the_same_when_loaded(kind, tied, file, tmp_path):
    base = tiny_models.save(tmp_path / "base", kind(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer())
    made = short_runs.ready(base)
    pairs = short_runs.batch(made, file)
    before = score(made.policy, pairs).sums
    short_runs.take_steps(made, pairs, 2)
    expected = score(made.policy, pairs).sums
    assert not torch.equal(before, expected)
    loaded = AutoModelForCausalLM.from_pretrained(saved(made, tmp_path / "saved", base))
    assert torch.equal(score(loaded, pairs).sums, expected)
    again = CausalLM(str(tmp_path / "saved")).build()
    assert torch.equal(score(again, pairs).sums, expected)
    head, embedding = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert torch.equal(head, embedding) == tied


EMBEDDING = {tiny_models.make_llama: "embed_tokens", tiny_models.make_gpt2: "wte"}


@pytest.mark.parametrize("whole", [[], ["embedding"], ["lm_head"], ["embedding", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [tiny_models.make_llama, tiny_models.make_gpt2])
def test_an_adapter_is_the_same_when_loaded(kind, tied, whole, file, tmp_path):
    # A trained copy of a tied embedding or head is easily saved under one name and looked for under another.
    base = tiny_models.save(tmp_path / "base", kind(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer())
    names = [EMBEDDING[kind] if name == "embedding" else name for name in whole]
    made = short_runs.ready(base, lora=Lora(r=2, modules_to_save=names or None))
    pairs = short_runs.batch(made, file)
    short_runs.take_steps(made, pairs, 2)
    trained = [name for name, value in made.policy.named_parameters() if value.requires_grad and "lora_" not in name]
    assert bool(trained) == bool(whole)
    expected = score(made.policy, pairs).sums
    folder = saved(made, tmp_path / "saved", base)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    assert torch.equal(score(plain, pairs).sums, expected)
    ours = CausalLM(str(folder)).build().eval()
    assert torch.equal(score(ours, pairs).sums, expected)
    assert plain.peft_config["default"].base_model_name_or_path == str(base)


def test_a_tied_embedding_that_is_trained_stays_tied(tiny_llama, file):
    for name in ("embed_tokens", "lm_head"):
        made = short_runs.ready(tiny_llama, lora=Lora(r=2, modules_to_save=[name]))
        short_runs.take_steps(made, short_runs.batch(made, file), 1)
        model = made.policy.get_base_model()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        assert torch.equal(embedding.modules_to_save["default"].weight, head.modules_to_save["default"].weight)


def test_an_adapter_finds_its_base_from_anywhere(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_llama.parent)
    made = short_runs.ready(tiny_llama.name + "/.", lora=Lora(r=2))
    folder = saved(made, tmp_path / "saved", tiny_llama.name + "/.")
    monkeypatch.chdir(tmp_path)
    assert CausalLM(str(folder)).base_path() == str(tiny_llama)
    CausalLM(str(folder)).build()


def test_an_adapter_trained_on_an_adapter_names_the_first_base(tiny_llama, file, tmp_path):
    first = short_runs.ready(tiny_llama, lora=Lora(r=2))
    pairs = short_runs.batch(first, file)
    short_runs.take_steps(first, pairs, 1)
    one = saved(first, tmp_path / "one", tiny_llama)
    second = short_runs.ready(one)
    short_runs.take_steps(second, pairs, 1)
    two = saved(second, tmp_path / "two", second.spec.base_path())
    assert CausalLM(str(two)).base_path() == str(tiny_llama)
    assert torch.equal(score(CausalLM(str(two)).build().eval(), pairs).sums, score(second.policy, pairs).sums)
