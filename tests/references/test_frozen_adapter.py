"""A frozen copy of the adapter that a policy starts with: exact, of its size, and met by nothing."""

import pytest
import torch
from peft import PeftModel
from support import peft_adapters, short_runs, tiny_models
from transformers import AutoModelForCausalLM

from dpo_lightning.callbacks.final_model import FinalModel
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenAdapter, FrozenCopy, Synced

KINDS = {**peft_adapters.PLAIN, "lora biases": {"lora_bias": True}}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture(scope="module")
def folders(tiny_llama, tmp_path_factory):
    """Trained adapters by kind."""
    place = tmp_path_factory.mktemp("trained")
    return {kind: peft_adapters.trained(place / kind, tiny_llama, options) for kind, options in KINDS.items()}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_starting_adapter_whatever_it_trains(kind, mixed, folders, tiny_llama, file):
    """The first loss is ln 2, and after steps the reference still says to the bit what it said."""
    made = short_runs.ready(folders[kind])
    assert isinstance(made.reference, FrozenAdapter)
    pairs = short_runs.batch(made, file)
    base = score(CausalLM(str(tiny_llama)).build(), pairs).sums
    before = peft_adapters.flags(made.policy)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output, logps = made.compare(pairs)
        start = made.reference(made.policy, pairs).sums
        assert (output.losses - short_runs.LN2).abs().max() < 1e-6
        assert not logps.margins.any()
        assert not torch.allclose(start, base, atol=0.1)
        output.losses.mean().backward()
        trained = {name: value for name, value in made.policy.named_parameters() if value.requires_grad}
        assert all(value.grad is not None and value.grad.any() for value in trained.values())
    short_runs.take_steps(made, pairs, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        # Autocast keeps half-precision copies of the policy's weights from here on, and may not lend them out.
        policy = score(made.policy, pairs, made.head).sums
        assert torch.equal(made.reference(made.policy, pairs).sums, start)
        assert not torch.allclose(policy, start, atol=0.1)
    assert peft_adapters.flags(made.policy) == before


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_what_is_trained_and_no_more(kind, folders):
    made = short_runs.ready(folders[kind])
    trained = [value for value in made.policy.parameters() if value.requires_grad]
    held = list(made.reference.held_weights().values())
    assert sum(value.nbytes for value in held) == sum(value.nbytes for value in trained)
    assert not {value.data_ptr() for value in held} & {value.data_ptr() for value in made.policy.parameters()}
    assert not any(value.requires_grad for value in held)


def test_nothing_meets_it(folders, file, tmp_path):
    """Neither parameters, optimizer, state dict, checkpoint nor what is saved; plain peft loads the result."""
    made = short_runs.module(folders["plain"])
    data = short_runs.PreferenceDataModule(train=str(file), batch_size=2, max_length=128)
    short_runs.fit(made, None, tmp_path, data=data, callbacks=[FinalModel()])
    held = {id(value) for value in made.reference.held_weights().values()}
    optimized = [value for group in made.configure_optimizers().param_groups for value in group["params"]]
    assert not held & {id(value) for value in [*optimized, *made.parameters()]}
    assert [id(value) for value in optimized] == [id(v) for v in made.policy.parameters() if v.requires_grad]
    assert {name.split(".")[0] for name in made.state_dict()} == {"policy"}
    assert list(made.policy.peft_config) == ["default"]
    content = torch.load(tmp_path / "checkpoints/step=2.ckpt", weights_only=True)
    assert len(content["state_dict"]) == len(optimized)
    assert not any("reference" in name for name in content["state_dict"])
    made.policy.save_pretrained(tmp_path / "by_peft")
    for folder in ("final_model", "by_peft"):
        files = [str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*")]
        assert not [name for name in files if "/" in name or "reference" in name]
        base = AutoModelForCausalLM.from_pretrained(made.spec.base_path())
        plain = PeftModel.from_pretrained(base, str(tmp_path / folder)).eval()
        pairs = short_runs.batch(made, file)
        assert torch.equal(score(plain, pairs).sums, score(made.policy, pairs).sums)


def test_a_run_is_that_of_a_frozen_copy(folders, file, tmp_path):
    """To the bit, optimizer state included: switching to the reference and back leaves no trace in the policy."""
    ends = []
    for reference in (FrozenAdapter(), FrozenCopy()):
        made = short_runs.module(folders["whole modules"], reference)
        runner = short_runs.fit(made, file, tmp_path / type(reference).__name__, steps=4, accumulate_grad_batches=2)
        ends.append((runner.optimizers[0].state_dict()["state"], dict(made.policy.named_parameters())))
    (moments, weights), (other_moments, other_weights) = ends
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    assert moments.keys() == other_moments.keys() != set()
    for number, state in moments.items():
        assert all(torch.equal(value, other_moments[number][name]) for name, value in state.items())


def test_what_is_frozen_in_the_policy_stays_frozen_and_is_not_copied(folders, file):
    """peft would make all of an adapter trainable whenever it switches one on."""
    made = short_runs.module(folders["plain"])
    made.configure_model()
    for name, value in made.policy.named_parameters():
        if "layers.0" in name:
            value.requires_grad_(False)
    made.reference.bind(made.policy, made.spec)
    before = peft_adapters.flags(made.policy)
    assert not any("layers.0" in name for name in made.reference.held_weights())
    made.compare(short_runs.batch(made, file))
    assert peft_adapters.flags(made.policy) == before


def test_the_policy_is_itself_again_after_an_error(folders):
    made = short_runs.ready(folders["plain"])
    before = [id(value) for value in made.policy.parameters()]

    def failing():
        with made.reference.as_model(made.policy):
            assert [id(value) for value in made.policy.parameters()] != before
            raise RuntimeError("while it is asked")

    with pytest.raises(RuntimeError, match="while it is asked"):
        failing()
    assert [id(value) for value in made.policy.parameters()] == before


def test_it_follows_the_policy(folders):
    made = short_runs.ready(folders["plain"])
    made.to(torch.bfloat16)
    assert {value.dtype for value in made.reference.held_weights().values()} == {torch.bfloat16}
    made.to("meta")
    assert {value.device.type for value in made.reference.held_weights().values()} == {"meta"}


def test_without_an_adapter_it_is_refused(tiny_llama):
    with pytest.raises(UserError, match="needs an adapter") as raised:
        short_runs.ready(tiny_llama, FrozenAdapter())
    assert raised.value.code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (given, kind)
        for given in (FrozenAdapter, FrozenCopy, Synced, None)
        for kind in ("new", "trained", "whole")
        if (given, kind) != (FrozenAdapter, "whole")  # refused
    ],
)
def test_under_checkpointing_a_reference_pass_computes_once_and_complains_of_nothing(
    given, kind, tiny_gpt2, file, tmp_path, recwarn
):
    """Nothing is kept for a backward pass that never comes, whoever the reference is."""
    folder = tiny_gpt2
    if kind == "trained":
        folder = peft_adapters.trained(tmp_path / "trained", tiny_gpt2, {})
    made = short_runs.ready(
        folder, given and given(), lora=Lora(r=2) if kind == "new" else None, gradient_checkpointing=True
    )
    pairs, calls = short_runs.batch(made, file), []
    with made.reference.as_model(made.policy) as model:
        (layer,) = [part for name, part in model.named_modules() if name.endswith("h.0.mlp")]
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    recwarn.clear()  # of what came up while the model was made
    made.reference(made.policy, pairs)
    assert calls == [False]
    made.compare(pairs)[0].losses.mean().backward()
    own = kind == "whole" or given is FrozenCopy  # its own layers, else the policy's, which are computed again
    assert calls == [False, False] if own else calls == [False, True, False, True]
    told = [str(warning.message) for warning in recwarn]
    assert not [text for text in told if "requires_grad" in text or "use_reentrant" in text or "checkpoint" in text]


def test_a_half_precision_adapter(tiny_llama, file, tmp_path):
    folder = peft_adapters.trained(tmp_path / "trained", tiny_llama, {})
    made = short_runs.ready(folder, dtype="bfloat16")
    output, logps = made.compare(short_runs.batch(made, file))
    assert (output.losses - short_runs.LN2).abs().max() < 1e-6
    assert not logps.margins.any()


def test_an_untied_head_is_copied_as_well(file, tmp_path):
    base = tiny_models.save(
        tmp_path / "base", tiny_models.make_llama(tie_word_embeddings=False), tiny_models.make_chat_tokenizer()
    )
    folder = peft_adapters.trained(tmp_path / "trained", base, {"modules_to_save": ["lm_head", "embed_tokens"]})
    made = short_runs.ready(folder)
    pairs = short_runs.batch(made, file)
    start = made.reference(made.policy, pairs).sums
    assert not made.compare(pairs)[1].margins.any()
    short_runs.take_steps(made, pairs, 2)
    assert torch.equal(made.reference(made.policy, pairs).sums, start)
