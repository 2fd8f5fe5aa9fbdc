"""All wrong keys of a command line and its files in one error, before anything heavy is imported."""

import json
import subprocess
import sys

import pytest
from support.command_line import CONFIGS, ROOT, refused, run

from dpo_lightning.config.files import read_command_line, read_config
from dpo_lightning.config.key_check import check_keys
from dpo_lightning.errors import UserError

LIGHT = """
import json, sys
from dpo_lightning.__main__ import main
code = main(json.loads(sys.argv[1]))
heavy = {"torch", "lightning", "transformers", "peft", "jsonargparse", "numpy", "datasets"} & set(sys.modules)
print(json.dumps([code, sorted(heavy)]))
"""


def light(*args):
    """The exit code of a command in a process of its own, what it printed, and which heavy packages it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(list(args))], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    *out, last = done.stdout.splitlines()
    return (*json.loads(last), "\n".join(out), done.stderr)


def wrong(tmp_path, text, *flags, command="fit"):
    """What is said of a config of this text beside the recipe, or an empty text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    args = [command, "--config", str(CONFIGS / "dpo.yaml"), "--config", str(path), *flags]
    try:
        check_keys(args, read_command_line(args))
    except UserError as error:
        return str(error)
    return ""


def test_nothing_heavy_is_imported_for_wrong_keys(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {num_epochs: 1, batch_size: 2}\n", encoding="utf-8")
    code, heavy, _, err = light("fit", "--config", str(path), "--use_lora")
    assert (code, heavy) == (64, []), err
    assert "3 options do not exist" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fit"], "output_dir, data, model are missing"),
        (["validate", "--data.train=x", "--config=configs/warmup.yaml"], "output_dir is missing"),
        (["fit", "-lr", "1e-5"], "the option -lr does not exist"),
        (["fit", "configs/dpo.yaml", "--config=configs/dpo.yaml"], "configs/dpo.yaml is neither an option"),
        (["infer", "--model=m", "--instruction=hi", "--max_new_tokens=0"], "max_new_tokens=0 is out of range"),
        (["infer", "--model=m", "--instruction=hi", "--temperature=-1"], "temperature=-1.0 is out of range"),
        (["evaluate", "--model=m", "--data=d", "--output=o.json", "--top_p=2"], "top_p=2.0 is out of range"),
        (["compare", "m", "--judge=llm", "--output=o.json", "--seed=-1"], "seed=-1 is out of range"),
    ],
    ids=str,
)
def test_nothing_heavy_is_imported_for_other_mistakes(args, said):
    code, heavy, _, err = light(*args)
    assert (code, heavy) == (64, []), err
    assert said in err


@pytest.mark.parametrize("args", [["fit", "--help"], ["predict", "--help", "DPOModule"], ["train"], ["fit", "--zzz"]])
def test_nothing_heavy_is_imported_for_help(args):
    code, heavy, _, _ = light(*args)
    assert (code, heavy) == (64 if "--help" not in args else 0, [])


def test_every_wrong_key_is_in_one_error_with_its_line(tmp_path):
    text = (
        "# a comment\n"
        "trainer:\n"
        "  max_epoch: 3\n"
        "  callbacks:\n"
        "    - class_path: Samples\n"
        "      init_args: {num_promts: 1}\n"
        "model:\n"
        "  init_args:\n"
        "    loss: {init_args: {betta: 1}}\n"
        "    policy: {lora: {rank: 8}}\n"
        "datasets:\n"
        "  - path: a.json\n"
        "    type: chatml.intel\n"
        "lora: {r: 8, alpha: 16}\n"
        "frobnicate: {x: 1}\n"
    )
    said = wrong(tmp_path, text, "--num_epochs", "3", "--data.trian=x")
    lines = said.splitlines()
    assert lines[0].startswith("error: 10 options do not exist")
    assert lines[-1].startswith("fix: ")
    assert str(tmp_path / "mine.yaml") in lines
    rows = {line.split()[0].rstrip(":"): " ".join(line.split()[1:]) for line in lines if line.startswith("  ")}
    assert rows["--num_epochs"] == "--trainer.max_epochs"
    assert rows["--data.trian"] == "did you mean data.train?"
    assert rows["3"] == "trainer.max_epoch did you mean trainer.max_epochs?"
    assert rows["6"] == "trainer.callbacks.num_promts did you mean trainer.callbacks.num_prompts?"
    assert rows["9"] == "model.loss.betta did you mean model.loss.beta?"
    assert rows["10"] == "model.policy.lora.rank model.policy.lora.r"
    assert rows["11"].startswith("datasets data.train")
    assert rows["14"] in ("lora.r model.policy.lora.r", "lora.alpha model.policy.lora.lora_alpha")
    assert rows["15"].startswith("frobnicate there is no such option here")


def test_both_files_are_named(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("num_epochs: 1\n")
    two.write_text("\nlr: 1\n")
    ran = run("fit", "--config", str(one), f"--config={two}")
    refused(ran, 64, "2 options do not exist", f"{one}\n  1: num_epochs", f"{two}\n  2: lr")


def test_one_wrong_key_is_two_lines(tmp_path):
    said = wrong(tmp_path, "\n\nnum_epochs: 1\n")
    path = tmp_path / "mine.yaml"
    assert said == f"error: the option num_epochs does not exist at {path}:3\nfix: write trainer.max_epochs"


@pytest.mark.parametrize("command", ["validate", "test", "predict", "precompute"])
def test_the_other_commands_lead_on_as_well(bench, command):
    ran = bench.run(command, "--model_name", "x", "--per_device_eval_batch_size", "2")
    refused(ran, 64, "2 options do not exist", "--model.policy.path", "--data.batch_size")


def test_options_of_another_version_of_the_trainer_are_left_to_the_parser(monkeypatch):
    """Lightning may be newer than the table."""
    args = ["fit", "--trainer.new_option=1"]
    with pytest.raises(UserError, match=r"trainer\.new_option does not exist"):
        check_keys(args, [])
    monkeypatch.setattr("dpo_lightning.config.key_check.version", lambda _: "9.0.0")
    check_keys(args, [])
    with pytest.raises(UserError, match=r"data\.new_option does not exist"):
        check_keys([*args, "--data.new_option=1"], [])


def test_keys_of_the_real_parser_are_known():
    check_keys(["fit", "--trainer.new_option=1", "--own=1"], [], ["trainer.new_option", "own"])


def test_options_of_the_command_are_known():
    """`precompute --out` is no option of `fit`, nor is `predict --return_predictions`."""
    for command, flag in (
        ("precompute", "--out=x"),
        ("predict", "--return_predictions=false"),
        ("test", "--verbose=x"),
    ):
        check_keys([command, flag], [])
        with pytest.raises(UserError, match="does not exist"):
            check_keys(["fit", flag], [])


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("model: {class_path: mine.Module, init_args: {own: 1, loss: {init_args: {other: 2}}}}\n", []),
        ("model: {init_args: {own: 1}}\n", ["--model", "mine.Module"]),
        ("", ["--model=mine.Module", "--model.own=1"]),
        ("", ["--model.loss", "mine.Loss", "--model.loss.own", "1"]),
        ("model: {init_args: {loss: mine.Loss}}\n", ["--model.loss.own", "1"]),
        ("", ["--model.optimizer.betas=[0.9, 0.95]", "--model.optimizer", "torch.optim.Adam"]),
        ("model: {init_args: {lr_scheduler: {class_path: LinearLR, init_args: {total_iters: 3}}}}\n", []),
        ("trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: eval/loss}}]}\n", []),
        ("trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.Timer, init_args: {x: 1}}]}\n", []),
        ("", ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=eval/loss"]),
        ("trainer: {logger: {class_path: CSVLogger, init_args: {name: x}}}\n", ["--trainer.logger.version=1"]),
        ("trainer: {strategy: {class_path: FSDPStrategy, init_args: {x: 1}}}\n", []),
        ("data: {init_args: {columns: {prompt: question}}}\n", ["--data.columns.chosen", "best"]),
        ("model: {init_args: {loss: {class_path: WeightedSum, init_args: {losses: [{class_path: DPOLoss}]}}}}\n", []),
        ("model: {policy: {lora: {r: 8}}}\n", ["--model.init_args.policy.init_args.lora.r=8"]),
        ("model: {class_path: dpo_lightning.SFTModule, init_args: {learning_rate: 1e-5}}\n", ["--model.help"]),
        ("", ["--data", "other.yaml", "--data.own=1"]),
        ("data: {init_args: {collator: null, cache: false}}\n", ["--print_config", "--fresh"]),
        ("", ["--allow-class-path", "mine", "--trainer.plugins+=mine.Plugin"]),
    ],
)
def test_options_of_other_packages_classes_are_left_to_the_parser(tmp_path, text, flags):
    """And so are keys below an option that takes any."""
    assert wrong(tmp_path, text or "{}\n", *flags) == ""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_passes(path):
    check_keys(["fit"], read_command_line(["--config", str(path)]))


def test_a_list_and_what_is_added_to_it_are_both_checked(tmp_path):
    one = "{class_path: Samples, init_args: {num_promts: 1}}"
    said = wrong(tmp_path, f"trainer:\n  callbacks: [{one}]\n  callbacks+: [{one.replace('promts', 'prompt')}]\n")
    assert "2 options do not exist" in said


def test_keys_without_a_value_are_left_out_and_notes_stand_once(tmp_path):
    """Configs of some trainers list options that are not set."""
    said = wrong(tmp_path, "fp16:\nlora_model_dir: null\nload_in_8bit: false\ntokenizer_name: a\ntokenizer_type: b\n")
    rows = [" ".join(line.split()) for line in said.splitlines() if line.startswith("  ")]
    assert rows[:3] == [
        "1: fp16 leave it out: it has no value",
        "2: lora_model_dir leave it out",
        "3: load_in_8bit leave it out: it is off if left out",
    ]
    assert rows[-1] == "5: tokenizer_type leave it out"
    assert said.count("the tokenizer in the model's") == 1


def test_many_wrong_keys_are_counted(tmp_path):
    said = wrong(tmp_path, "".join(f"wrong_{i}_xyz: 1\n" for i in range(200)))
    assert "error: 200 options do not exist" in said
    assert "... and 140 more" in said
    assert len(said.splitlines()) < 70


def test_a_key_of_untrusted_text_is_escaped(tmp_path):
    said = wrong(tmp_path, '"lr\\u2028x": 1\n"a\\nb": 2\n')
    assert "\u2028" not in said
    assert "  2: a\\nb" in said


MERGED = """
trainer:
  callbacks:
    - &shown {class_path: Samples, init_args: &few {num_prompts: 1}}
    - {<<: *shown, class_path: Samples}
data:
  init_args:
    columns: &names {prompt: question, chosen: good}
    allow: leak
model:
  init_args:
    policy:
      lora: &small {<<: {lora_alpha: 8, r: 4}, r: 8}
"""


def test_merge_keys_are_merged(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(MERGED, encoding="utf-8")
    content = read_config(str(path))
    assert content["model"]["init_args"]["policy"]["lora"] == {"r": 8, "lora_alpha": 8}
    assert content["trainer"]["callbacks"][0] == content["trainer"]["callbacks"][1]
    assert wrong(tmp_path, MERGED) == ""
    assert "model.policy.lora.rr" in wrong(tmp_path, MERGED.replace("{lora_alpha: 8,", "{rr: 8,"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_mapping_that_is_merged_and_merges_itself_has_no_repeated_key(tmp_path, order):
    """Whichever of the two is read first: a merged key that is overridden was called repeated."""
    sections = ["a: {b: {base: &base {x: 1, y: 2}, own: &own {<<: *base, x: 3}}}\n", "top: {<<: *own, z: 4}\n"]
    path = tmp_path / "merged.yaml"
    path.write_text("".join(sections), encoding="utf-8")
    content = read_config(str(path))
    assert content["a"]["b"]["own"] == {"x": 3, "y": 2}
    assert content["top"] == {"x": 3, "y": 2, "z": 4}


def test_a_section_that_only_holds_anchors_is_no_section_of_options(tmp_path):
    said = wrong(tmp_path, "x-shared: &shared {batch_size: 2}\ndata:\n  init_args: {<<: *shared}\n")
    assert "the option x-shared does not exist" in said
    assert "fix: leave it out: define an anchor where it is used first" in said


def test_classes_of_lightning_share_options_by_merge_keys(bench):
    text = (
        "trainer:\n  callbacks:\n"
        "  - {class_path: EarlyStopping, init_args: &watch {monitor: eval/loss, mode: min}}\n"
        "  - {class_path: ModelCheckpoint, init_args: {<<: *watch, save_top_k: 2}}\n"
    )
    ran = bench.fit(*bench.overlay(text), "--print_config")
    assert ran.code == 0, ran
    assert ran.out.count("monitor: eval/loss") == 2
    assert "save_top_k: 2" in ran.out


def test_a_key_twice_in_a_merged_mapping_is_refused(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("a: {b: {c: &c {x: 1, x: 2}}}\ntop: {<<: *c}\n", encoding="utf-8")
    with pytest.raises(UserError, match="'x' is repeated"):
        read_config(str(path))


def test_merge_keys_reach_the_run(bench):
    """The parser reads the file as well."""
    text = "model:\n  init_args:\n    policy:\n      lora: {<<: &small {r: 4, lora_alpha: 8}, r: 2}\n"
    ran = bench.fit(*bench.overlay(text), "--print_config")
    assert ran.code == 0, ran
    assert "r: 2\n" in ran.out
    assert "lora_alpha: 8\n" in ran.out
