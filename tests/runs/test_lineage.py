"""Stage after stage, each from the last one's final model: ln 2 at each start, and a record of all that was done."""

import hashlib
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support import short_runs, tiny_models
from support.whole_runs import sft, sft_rows, write_rows
from transformers import AutoModelForCausalLM

from dpo_lightning.callbacks import FinalModel
from dpo_lightning.data.datamodules import SFTDataModule
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import ORIGIN_FILE, CausalLM, Lora, save_model
from dpo_lightning.runs.file_digests import file_hash
from dpo_lightning.runs.lineage import (
    UNRECORDED,
    Stage,
    folder_digest,
    format_section,
    read_stages,
    trace_stages,
    write_stages,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """SFT rows."""
    return write_rows(tmp_path_factory.mktemp("rows"), "sft", sft_rows(8))


def run_sft(model, demonstrations, out, lora=None):
    """An SFT stage of two steps."""
    made = sft(model, policy=CausalLM(str(model), lora=lora), learning_rate=1e-2)
    data = SFTDataModule(train=demonstrations, batch_size=2, max_length=128)
    short_runs.fit(made, None, out, data=data, callbacks=[FinalModel()], enable_checkpointing=False)
    return made


def run_dpo(model, file, out, **options):
    """A DPO stage of two steps, and the losses that it began with."""
    first = []
    made = short_runs.module(model, **options)
    step = made.compare

    def watched(*args):
        output, logps = step(*args)
        first.append((output.losses.detach(), logps.margins.detach()))
        return output, logps

    made.compare = watched
    short_runs.fit(made, file, out, callbacks=[FinalModel()], enable_checkpointing=False)
    return made, first[0]


def assert_began_at_ln2(first):
    losses, margins = first
    assert (losses - short_runs.LN2).abs().max() < 1e-6
    assert not margins.any()


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_every_stage_begins_where_the_last_one_ended(lora, file, demonstrations, tmp_path, monkeypatch):
    """From a base that was given relatively, in folders with spaces and Hangul, from another working folder."""
    home, elsewhere = tmp_path / "내 모델들", tmp_path / "else where"
    home.mkdir()
    elsewhere.mkdir()
    tiny_models.save(home / "base", tiny_models.make_llama(), tiny_models.make_chat_tokenizer())
    monkeypatch.chdir(home)
    made = run_sft("base", demonstrations, home / "sft", lora)
    monkeypatch.chdir(elsewhere)
    begun = score(made.policy.eval(), short_runs.batch(short_runs.ready(home / "base"), file)).sums
    for number, start in ((1, "sft"), (2, "단계 1")):
        folder = home / start / "final_model"
        pairs = short_runs.batch(short_runs.ready(folder), file)
        assert torch.equal(score(CausalLM(str(folder)).build().eval(), pairs).sums, begun)
        made, first = run_dpo(folder, file, home / f"단계 {number}")
        assert_began_at_ln2(first)
        ended = score(made.policy, pairs).sums
        assert not torch.allclose(ended, begun, atol=1e-2)
        begun = ended
    last = home / "단계 2/final_model"
    assert [stage.what for stage in trace_stages(last)] == ["SFTModule", "DPOModule", "DPOModule"]
    if lora:
        assert CausalLM(str(last)).base_path() == str(home / "base")


def test_the_adapter_of_a_later_stage_stands_alone(file, demonstrations, tiny_llama, tmp_path):
    """DPO that began from an SFT adapter leaves one adapter that holds both: plain peft gives the trainer's numbers."""
    run_sft(tiny_llama, demonstrations, tmp_path / "sft", Lora(r=2))
    made, _ = run_dpo(tmp_path / "sft/final_model", file, tmp_path / "dpo")
    pairs = short_runs.batch(made, file)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "dpo/final_model")).eval()
    assert torch.equal(score(plain, pairs).sums, score(made.policy, pairs).sums)


def test_another_adapter_in_the_policy_is_no_part_of_the_result(tiny_llama, file, tmp_path):
    """Such as a reference that is held beside the one that is trained, and that happens to be the active one."""
    made = short_runs.ready(tiny_llama, lora=Lora(r=2))
    pairs = short_runs.batch(made, file)
    made.policy.add_adapter("reference", made.policy.peft_config["default"])
    short_runs.take_steps(made, pairs, 2)
    expected = score(made.policy, pairs).sums
    made.policy.set_adapter("reference")
    save_model(made.policy, made.tokenizer, tmp_path / "saved", str(tiny_llama))
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(tmp_path / "saved"))
    assert torch.equal(score(plain.eval(), pairs).sums, expected)
    assert torch.equal(score(CausalLM(str(tmp_path / "saved")).build().eval(), pairs).sums, expected)


def test_an_adapter_on_a_model_that_an_earlier_stage_trained(file, demonstrations, tiny_llama, tmp_path):
    """The base is a final model itself; its stages come first, and a base that was changed since is refused."""
    run_sft(tiny_llama, demonstrations, tmp_path / "sft")
    base = tmp_path / "sft/final_model"
    _, first = run_dpo(base, file, tmp_path / "one", lora=Lora(r=2))
    assert_began_at_ln2(first)
    made, first = run_dpo(tmp_path / "one/final_model", file, tmp_path / "two", lora=Lora(r=2))
    assert_began_at_ln2(first)
    stages = trace_stages(tmp_path / "two/final_model")
    assert [stage.what for stage in stages] == ["SFTModule", "DPOModule", "DPOModule"]
    assert [stage.policy["lora"] and stage.policy["lora"]["r"] for stage in stages] == [None, 2, None]
    assert CausalLM(str(tmp_path / "two/final_model")).base_path() == str(base)
    save_model(CausalLM(str(tiny_llama)).build(), made.tokenizer, base, str(tiny_llama))
    with pytest.raises(UserError, match="trained on another base model"):
        CausalLM(str(tmp_path / "two/final_model")).build()


def test_the_card_of_the_third_stage_tells_all_three(file, demonstrations, tiny_llama, tmp_path):
    run_sft(tiny_llama, demonstrations, tmp_path / "sft", Lora(r=3))
    run_dpo(tmp_path / "sft/final_model", file, tmp_path / "one")
    made, _ = run_dpo(tmp_path / "one/final_model", file, tmp_path / "two")
    last = tmp_path / "two/final_model"
    stages = read_stages(last)
    assert [stage.steps for stage in stages] == [2, 2, 2]
    assert [stage.start for stage in stages] == [folder_digest(tiny_llama), stages[0].digest, stages[1].digest]
    assert stages[2].digest == folder_digest(last)
    assert len({stage.digest for stage in stages}) == 3
    assert stages[0].data == {"train": {demonstrations: file_hash(demonstrations)}}
    assert stages[2].data == {"train": {str(file): file_hash(str(file))}}
    assert "reference" not in stages[0].settings
    assert stages[2].settings["reference"] == "FrozenAdapter"
    assert stages[2].settings["loss"].startswith("DPOLoss(beta=")
    assert stages[2].settings["reference digest"] == made.reference.digest(made.policy)[:16]
    lines = (last / "README.md").read_text().partition("## Stages")[2].splitlines()
    told = [line for line in lines if line[:2] in ("1.", "2.", "3.")]
    assert len(told) == 3
    for line, stage, path in zip(told, stages, (tiny_llama, tmp_path / "sft", tmp_path / "one"), strict=True):
        assert f"`{stage.what}`, 2 optimizer steps" in line
        assert str(path) in line
        for digest in (stage.start, stage.digest, *stage.data["train"].values()):
            assert digest[:16] in line
    assert "r=3, lora_alpha=32" in told[0]
    assert "new adapter" not in told[1] + told[2]
    assert "FrozenAdapter" in told[1]


def test_weights_that_were_changed_since_are_told(file, tiny_llama, tmp_path, capsys):
    run_dpo(tiny_llama, file, tmp_path / "one")
    folder = tmp_path / "one/final_model"
    tiny_models.save(folder, tiny_models.make_llama(seed=5), tiny_models.make_chat_tokenizer())
    capsys.readouterr()
    assert [stage.what for stage in trace_stages(folder)] == ["DPOModule", UNRECORDED]
    assert "have no record of their training, or were changed since" in capsys.readouterr().out


def test_what_came_from_elsewhere_has_no_record(file, tiny_llama, tmp_path, capsys):
    assert trace_stages("org/name") == []
    assert trace_stages(tiny_llama) == []
    assert capsys.readouterr().out == ""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "theirs")
    run_dpo(tmp_path / "theirs", file, tmp_path / "one")
    stages = trace_stages(tmp_path / "one/final_model")
    assert [stage.what for stage in stages] == [UNRECORDED, "DPOModule"]
    assert stages[0].digest == stages[1].start == folder_digest(tmp_path / "theirs")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"stages": 3}', '{"stages": [3]}', '{"stages": [{}]}', '{"stages": [{"what": "x", "start": 1}]}'],
)
def test_a_damaged_record_ends_no_run(content, file, tiny_llama, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / ORIGIN_FILE).write_text(content)
    assert trace_stages(folder) == []
    assert "damaged" in capsys.readouterr().out
    run_dpo(folder, file, tmp_path / "run")


def test_a_record_cannot_break_the_card():
    stage = Stage("x`\n# y", {"path": "a\nb"}, "", "", 0, {"loss": "`evil`\n\n![x](y)"}, {"train": {"f\n": "d"}})
    (line,) = (line for line in format_section([stage]).splitlines() if line.startswith("1."))
    for part in ("`x' # y`", "`a b`", "`'evil' ![x](y)`", "`f`"):
        assert part in line


def test_a_record_keeps_what_is_told_beside_it(tmp_path):
    (tmp_path / ORIGIN_FILE).write_text(json.dumps({"base_digest": "x"}))
    stage = Stage("DPOModule", {"path": "모델"}, "s", "d", 3, {"loss": "l"}, {"train": {"f": "h"}})
    write_stages(tmp_path, [stage])
    assert json.loads((tmp_path / ORIGIN_FILE).read_text())["base_digest"] == "x"
    assert read_stages(tmp_path) == [stage]


def test_an_adapter_on_an_adapter_is_refused(tiny_llama, file, tmp_path):
    first = short_runs.ready(tiny_llama, lora=Lora(r=2))
    save_model(first.policy, first.tokenizer, tmp_path / "one", str(tiny_llama))
    save_model(first.policy, first.tokenizer, tmp_path / "two", str(tmp_path / "one"))
    with pytest.raises(UserError, match="an adapter itself") as raised:
        CausalLM(str(tmp_path / "two")).build()
    assert raised.value.code == ExitCode.MODEL
    assert f"export --model {tmp_path / 'one'}" in raised.value.fix


def test_a_base_that_went_away_is_told_with_the_file_that_names_it(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "base")
    made = short_runs.ready(tmp_path / "base", lora=Lora(r=2))
    save_model(made.policy, made.tokenizer, tmp_path / "adapter", str(tmp_path / "base"))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the adapter's base model does not exist at .*adapter_config\.json") as raised:
        CausalLM(str(tmp_path / "adapter")).build()
    assert raised.value.code == ExitCode.INPUT_MISSING
    assert "base_model_name_or_path" in raised.value.fix


def test_the_hash_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rows-2.jsonl").write_text("b")
    (tmp_path / "set" / "rows-10.jsonl").write_text("c")
    (tmp_path / "whole.jsonl").write_text("bc")
    whole = file_hash(str(tmp_path / "whole.jsonl"))
    assert whole == "sha256:" + hashlib.sha256(b"bc").hexdigest()
    assert file_hash(str(tmp_path / "set")) == file_hash(str(tmp_path / "set" / "rows-*.jsonl")) == whole
    assert (
        file_hash(str(tmp_path / "gone.jsonl")) == file_hash("hf://org/name") == file_hash(str(tmp_path / "no")) == ""
    )
