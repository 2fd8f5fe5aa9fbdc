"""A reference that follows the policy: by the equation, once per optimizer step and through checkpoints."""

import pytest
import torch
from lightning.pytorch import Callback
from support import peft_adapters, short_runs, tiny_models
from torch import nn

from dpo_lightning.callbacks.samples import Samples
from dpo_lightning.data.datamodules import PreferenceDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import SimPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import FrozenAdapter, FrozenCopy, Synced
from dpo_lightning.sampling import Sampling

ROWS = 24


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl", rows=ROWS)


@pytest.fixture(scope="module")
def sft_adapter(tiny_llama, tmp_path_factory):
    """An adapter that was trained before."""
    return peft_adapters.trained(tmp_path_factory.mktemp("sft"), tiny_llama, peft_adapters.PLAIN["whole modules"])


@pytest.fixture
def made(request, tiny_llama, tiny_gpt2, sft_adapter):
    """A maker of runs of a kind; Llama's embedding is tied to its head, the adapter trains both."""

    def make(kind, reference):
        if kind == "pissa":
            return peft_adapters.module(tiny_llama, peft_adapters.STRANGE["pissa"], reference)
        folder = {"whole": tiny_llama, "gpt2": tiny_gpt2, "new": tiny_llama, "trained": sft_adapter}[kind]
        return short_runs.module(folder, reference, lora=Lora(r=2) if kind == "new" else None)

    return make


class Trace(Callback):
    """The policy's trained weights and the reference's, at the start and after every micro-batch."""

    def __init__(self):
        self.policy, self.reference, self.steps = [], [], []

    def note(self, trainer, module):
        trained = {n: v.detach().clone() for n, v in module.policy.named_parameters() if v.requires_grad}
        self.policy.append(trained)
        own = module.reference.held_weights()
        self.reference.append({name: own[name].detach().clone() for name in trained})
        self.steps.append(trainer.global_step)

    def on_train_start(self, trainer, pl_module):
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.note(trainer, pl_module)


KINDS = ["whole", "gpt2", "new", "trained", "pissa"]


@pytest.mark.parametrize("alpha", [0.6, 0.25, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_equation_once_per_optimizer_step(kind, alpha, made, file, tmp_path):
    """Every second step of four micro-batches; eight micro-batches are 2 steps, so that micro-steps would show."""
    trace, module = Trace(), made(kind, Synced(every=2, alpha=alpha))
    data = PreferenceDataModule(train=str(file), batch_size=1, max_length=128)
    options = {"accumulate_grad_batches": 4, "callbacks": [trace], "enable_checkpointing": False}
    short_runs.fit(module, None, tmp_path, steps=5, data=data, **options)
    assert trace.steps == [0] + [step // 4 for step in range(1, 21)]
    expected = {name: value.double() for name, value in trace.policy[0].items()}
    for number, (step, policy) in enumerate(zip(trace.steps, trace.policy, strict=True)):
        if number and step % 2 == 0 and step != trace.steps[number - 1]:
            expected = {name: alpha * policy[name].double() + (1 - alpha) * expected[name] for name in policy}
        for name, value in trace.reference[number].items():
            torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-6)
            if alpha == 1 and number and step % 2 == 0 and step != trace.steps[number - 1]:
                assert torch.equal(value, policy[name])
    moved = [name for name, value in trace.reference[-1].items() if not torch.equal(value, trace.reference[0][name])]
    assert moved == list(trace.policy[0])


def test_defaults_and_what_is_held(made):
    assert (Synced().every, Synced().alpha) == (512, 0.6)
    for kind, start in (("whole", FrozenCopy), ("new", FrozenAdapter), ("trained", FrozenAdapter)):
        module = made(kind, Synced())
        module.configure_model()
        assert type(module.reference.start) is start
        assert not module.reference._parameters
        assert not list(module.reference.parameters())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_policy(kind, mixed, made, file):
    module = made(kind, Synced())
    module.configure_model()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output, logps = module.compare(short_runs.batch(module, file))
    assert (output.losses - short_runs.LN2).abs().max() < 1e-6
    assert not logps.margins.any()


@pytest.mark.parametrize("kind", ["whole", "trained"])
def test_a_hard_copy_is_the_policy_as_a_function(kind, made, file, capsys):
    module = made(kind, Synced(every=3, alpha=1.0))
    module.configure_model()
    pairs = short_runs.batch(module, file)
    start = module.reference(module.policy, pairs).sums
    short_runs.take_steps(module, pairs, 2)
    for step in (1, 2):
        module.reference.after_step(module.policy, step)
        assert torch.equal(module.reference(module.policy, pairs).sums, start)
    assert "moved" not in capsys.readouterr().out
    module.reference.after_step(module.policy, 3)
    assert "reference: moved towards the policy by 1.0 after step 3; again every 3 steps" in capsys.readouterr().out
    found = module.reference(module.policy, pairs).sums
    assert torch.equal(found, score(module.policy, pairs, module.head).sums)
    assert not torch.allclose(found, start, atol=0.1)
    assert not module.compare(pairs)[1].margins.any()
    short_runs.take_steps(module, pairs, 1)  # what is copied does not move with the policy
    assert torch.equal(module.reference(module.policy, pairs).sums, found)
    module.reference.after_step(module.policy, 6)
    assert "moved" not in capsys.readouterr().out  # said once


class Counting(nn.Module):
    """A part of a model that has a buffer, as batch norms or routers with a bias have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2, dtype=torch.long))


def test_buffers_are_copied_whatever_the_mix(made):
    module = made("whole", Synced(every=1, alpha=0.5))
    module.configure_model()
    module.policy.counting = Counting()
    module.reference.bind(module.policy, module.spec)
    module.policy.counting.seen += 7
    module.reference.after_step(module.policy, 1)
    assert module.reference.held_weights()["counting.seen"].tolist() == [7, 7]
    assert module.reference.get_extra_state()["counting.seen"].tolist() == [7, 7]
    module.policy.counting.seen += 1
    assert module.reference.held_weights()["counting.seen"].tolist() == [7, 7]


# Checkpoints


@pytest.mark.parametrize("stop", [3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_is_as_if_it_had_never_stopped(kind, stop, made, file, tmp_path):
    """Step 4 has an update: the checkpoint is written after it, and it is neither lost nor done again."""

    def run(place, steps, ckpt=None, seed=0):
        torch.manual_seed(seed)
        module = made(kind, Synced(every=2, alpha=0.6))
        short_runs.fit(module, file, tmp_path / place, steps=steps, ckpt=ckpt, accumulate_grad_batches=2)
        return module

    whole, first = run("whole", 6), run("first", stop)
    ckpt = tmp_path / f"first/checkpoints/step={stop}.ckpt"
    # A new adapter would begin with another draw here, which the checkpoint's weights replace.
    resumed = run("second", 6, ckpt, seed=0 if kind == "pissa" else 1)
    for name, value in whole.reference.held_weights().items():
        assert torch.equal(resumed.reference.held_weights()[name], value), name
    others = dict(whole.policy.named_parameters())
    for name, value in resumed.policy.named_parameters():
        assert torch.equal(value, others[name]), name
    pairs = short_runs.batch(whole, file)
    assert torch.equal(resumed.reference(resumed.policy, pairs).sums, whole.reference(whole.policy, pairs).sums)
    assert not torch.equal(first.reference(first.policy, pairs).sums, whole.reference(whole.policy, pairs).sums)


@pytest.mark.parametrize("kind", ["whole", "new", "trained"])
def test_a_checkpoint_holds_its_weights_and_the_anchor_of_the_start(kind, made, file, tmp_path):
    module = made(kind, Synced(every=1))
    module.configure_model()
    start = module.reference.identity(module.policy)
    short_runs.fit(module, file, tmp_path, steps=2)
    content = torch.load(tmp_path / "checkpoints/step=2.ckpt", weights_only=True)
    assert content["reference_digest"] == start["reference_digest"]
    assert torch.equal(content["reference_probe"], start["reference_probe"])
    kept = content["state_dict"].pop("reference._extra_state")
    trained = {name: value for name, value in module.policy.named_parameters() if value.requires_grad}
    assert kept.keys() == trained.keys()
    for name, value in kept.items():
        assert torch.equal(value, module.reference.held_weights()[name])
        assert not torch.equal(value, trained[name])
    assert all(name.startswith("policy.") for name in content["state_dict"])
    optimized = [value for group in module.configure_optimizers().param_groups for value in group["params"]]
    assert [id(value) for value in optimized] == [id(value) for value in trained.values()]


def test_another_start_is_refused_though_the_weights_would_be_restored(made, tiny_llama, file, tmp_path):
    short_runs.fit(made("new", Synced(every=1)), file, tmp_path / "first", steps=1)
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    module = short_runs.module(other, Synced(every=1), lora=Lora(r=2))
    with pytest.raises(UserError, match="another reference"):
        short_runs.fit(module, file, tmp_path / "second", steps=2, ckpt=tmp_path / "first/checkpoints/step=1.ckpt")


# What shows


@pytest.mark.parametrize("kind", ["whole", "new"])
def test_samples_show_what_has_become_of_it(kind, made, file, tmp_path):
    """A hard copy at the last step answers as the policy; a start that stayed answers otherwise."""
    drawn = {}
    for every in (4, 100):
        samples = Samples(sampling=Sampling(max_new_tokens=12, temperature=0.0))
        data = PreferenceDataModule(train=str(file), eval=str(file), batch_size=2, max_length=128, allow="leak")
        torch.manual_seed(0)
        module = made(kind, Synced(every=every, alpha=1.0))
        runner = short_runs.fit(module, None, tmp_path / str(every), steps=4, data=data, enable_checkpointing=False)
        runner.callbacks.append(samples)
        runner.validate(module, datamodule=data, verbose=False)
        drawn[every] = samples.drawn
    assert all(policy == reference for _, policy, reference in drawn[4])
    assert any(policy != reference for _, policy, reference in drawn[100])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0 must be at least 1 at model.reference.every"),
        ({"alpha": 0.0}, r"alpha=0.0 must be in \(0, 1\]"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": float("nan")}, "alpha=nan"),
    ],
)
def test_a_mix_that_is_none_is_refused(options, said):
    with pytest.raises(UserError, match=said) as raised:
        Synced(**options)
    assert raised.value.code == ExitCode.CONFIG


def test_a_loss_without_a_reference_refuses_it(tiny_llama):
    with pytest.raises(UserError, match="would only take memory"):
        short_runs.module(tiny_llama, Synced(), loss=SimPOLoss())


def test_a_policy_without_weights_of_its_own_is_asked_in_any_layout(made):
    module = made("trained", Synced())
    module.configure_model()
    assert module.takes_trees()
    assert isinstance(module.spec, CausalLM)
