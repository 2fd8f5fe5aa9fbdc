"""Where a row's log-probabilities depend on the longest row of its batch, it is said; no file may stand for them."""

import pytest
import torch
from support import short_runs
from support.model_families import LONG, LONGROPE, PHI, VOCAB, build, save
from support.precomputed import data

from dpo_lightning import DPOModule
from dpo_lightning.callbacks import SelfCheck
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.forward_checks import independent_length
from dpo_lightning.references import reference_pass
from dpo_lightning.references.precomputed import Precomputed

DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "max_position_embeddings": 64,
}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_compress_ratio": 4}


def refused(made, rows, folder, code):
    """The message with which a run is refused."""
    with pytest.raises(UserError) as raised:
        short_runs.fit(made, None, folder, data=rows, enable_checkpointing=False)
    assert raised.value.code == code
    return str(raised.value)


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    """A folder of a model whose positions change where a batch has a row of more than 48 tokens."""
    return save(tmp_path_factory.mktemp("phi3"), "phi3", **PHI | LONGROPE)


@pytest.mark.parametrize(
    ("kind", "options", "length"),
    [
        ("phi3", PHI | LONGROPE, 48),
        ("llama", PHI | {"rope_parameters": LONG | {"original_max_position_embeddings": 32}}, 32),
        ("llama", PHI | DYNAMIC, 64),
        ("gemma3_text", {"rope_parameters": {"full_attention": LONG | {"original_max_position_embeddings": 32}}}, 32),
        ("llava", {"text_config": {"model_type": "llama", **PHI, **DYNAMIC}}, 64),
        ("deepseek_v32", {"index_topk": 8}, 8),
        ("deepseek_v32", {"index_topk": 8} | DYNAMIC, 8),
        ("deepseek_v32", {"index_topk": 80} | DYNAMIC, 64),
        ("qwen4_exp_text", INDEXER | {"indexer_budget": 16}, 16),
        ("glm_moe_dsa", {"index_topk": 2048}, 2048),
        ("llama", PHI, None),
        ("gemma3_text", {}, None),
    ],
)
def test_how_long_rows_may_be(kind, options, length):
    from transformers import CONFIG_MAPPING

    found = independent_length(CONFIG_MAPPING[kind](**options))
    assert (found and found[0]) == length


def test_what_is_said_of_it_is_what_happens():
    model = build("phi3", **PHI | LONGROPE).eval()
    ids, widths = torch.randint(5, VOCAB, (1, 60), generator=torch.Generator().manual_seed(0)), (30, 48, 49, 60)
    with torch.no_grad():
        first, *others = (model(input_ids=ids[:, :width]).logits[0, :30] for width in widths)
    apart = [float((other - first).abs().max()) for other in others]
    assert apart[0] < 1e-5
    assert min(apart[1:]) > 0.1


@pytest.mark.parametrize(("max_length", "times"), [(48, 0), (128, 1)])
def test_it_is_said_where_rows_may_be_so_long(max_length, times, longrope, file, tmp_path, capsys):
    made, rows = short_runs.module(longrope), data(file, max_length=max_length, overlong="drop", eval=str(file))
    short_runs.fit(made, file, tmp_path, data=rows, enable_checkpointing=False)
    told = capsys.readouterr().out
    said = "note: beyond 48 tokens, a row's log-probabilities depend on the longest row of its batch (phi3: "
    assert told.count(said) == times
    assert "self-check: passed (starting loss 0.693147, margins 0" in told


def test_it_is_said_once_for_a_length(longrope, capsys):
    """Rows are prepared more than once: for training, then for an evaluation."""
    made = short_runs.module(longrope)
    for length, times in ((128, 1), (128, 0), (96, 1), (48, 0)):
        made.check_length(length)
        assert capsys.readouterr().out.count("note: beyond 48 tokens") == times


@pytest.mark.usefixtures("place")
def test_the_model_that_computes_the_file_counts(longrope, tiny_llama, file, tmp_path):
    """The policy's own rows may be of any length."""
    made = short_runs.module(tiny_llama, Precomputed(model=str(longrope)))
    assert "(phi3: its longrope" in refused(made, data(file), tmp_path / "run", ExitCode.CONFIG)


@pytest.mark.usefixtures("place")
def test_a_precomputed_reference_is_refused_for_such_rows(longrope, file, tmp_path):
    """Of the nine pairs some have more than 48 tokens."""
    message = refused(short_runs.module(longrope, Precomputed()), data(file), tmp_path / "run", ExitCode.CONFIG)
    assert "beyond 48, log-probabilities depend on the longest row of their batch (phi3: its longrope" in message
    assert "pairs.jsonl:9" in message
    assert not (tmp_path / "outputs" / "reference").exists()
    for most in (48, 40):
        short, made = data(file, max_length=most, overlong="drop"), short_runs.module(longrope, Precomputed())
        short_runs.fit(made, file, tmp_path / str(most), data=short, enable_checkpointing=False)


@pytest.mark.usefixtures("place")
def test_the_self_check_looks_at_the_longest_row(longrope, file, tmp_path, monkeypatch):
    """Where nothing in the configuration tells of it."""
    monkeypatch.setattr(reference_pass, "independent_length", lambda config: None)
    message = refused(short_runs.module(longrope, Precomputed()), data(file), tmp_path / "run", ExitCode.MODEL)
    assert "pairs.jsonl:9 and " in message
    assert "pairs.jsonl:1 in one batch" in message
    assert "the model's numbers depend on the rows of a batch" in message


@pytest.mark.parametrize(
    ("reference", "looks"),
    [(None, 0), (Precomputed(), 1), (Precomputed(model="other"), 0)],
    ids=["live", "a file", "a file of another model"],
)
@pytest.mark.usefixtures("place")
def test_how_the_longest_row_is_looked_at(reference, looks, tiny_llama, file, tmp_path, monkeypatch):
    """Where another batch computed its start: in the run's precision, without a gradient and a draw of its own."""
    (tmp_path / "other").symlink_to(tiny_llama)
    found, check, compare = [], SelfCheck._check_longest, DPOModule.compare

    def watched(*args):
        before = torch.get_rng_state()
        with monkeypatch.context() as patched:
            patched.setattr(DPOModule, "compare", drawing)
            check(*args)
        assert torch.equal(torch.get_rng_state(), before)

    def drawing(*args):
        torch.rand(())
        stance = torch._dynamo.eval_frame._stance.stance
        found.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), stance))
        return compare(*args)

    monkeypatch.setattr(SelfCheck, "_check_longest", watched)
    made = short_runs.module(tiny_llama, reference)
    options = {"data": data(file), "precision": "bf16-mixed", "enable_checkpointing": False}
    short_runs.fit(made, None, tmp_path / "run", steps=1, **options)
    assert found == [(True, False, "force_eager")] * looks
