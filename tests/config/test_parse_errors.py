"""What a wrong command line or config gets: the key, what is wrong with it, and the near name."""

import itertools

import pytest
from support.command_line import CONFIGS, refused, run, watch_loading

from dpo_lightning.config.parse_errors import Known, parser_error, shorten

FLAGS = {
    "typo": (["--modle.loss.beta", "1"], "the option modle.loss.beta does not exist", "model.loss.beta?"),
    "typo in a part": (["--model.los.beta", "1"], "model.los", "did you mean model.loss"),
    "typo in a loss": (
        ["--model.loss.betta", "1"],
        "the option model.loss.betta does not exist",
        "did you mean model.loss.beta?",
    ),
    "typo in the model": (["--model.learnin_rate", "1"], "model.learnin_rate", "did you mean model.learning_rate?"),
    "typo in the policy": (["--model.policy.dtyp", "x"], "model.policy.dtyp", "did you mean model.policy.dtype?"),
    "typo in a layout": (
        ["--data.collator", "packedsharedprefix"],
        "data.collator",
        "did you mean PackedSharedPrefix?",
    ),
    "no such layout": (["--data.collator", "xyz"], "data.collator", "--data.collator takes Padded, Packed, Shared"),
    "typo in lora": (["--model.policy.lora.rr", "1"], "model.policy.lora.rr", "did you mean model.policy.lora.r?"),
    "typo in the data": (["--data.batchsize", "1"], "data.batchsize", "did you mean data.batch_size?"),
    "typo in the trainer": (["--trainer.max_step", "1"], "trainer.max_step", "did you mean trainer.max_steps?"),
    "a key of another place": (["--beta", "1"], "the option beta does not exist", "did you mean model.loss.beta?"),
    "half a key": (
        ["--trainer.max_ep", "1"],
        "the option trainer.max_ep does not exist",
        "fix: did you mean trainer.max_",
    ),
    "half of --config": (["--conf", "x.yaml"], "the option conf does not exist", "did you mean config?"),
    "nothing like it": (["--zzzz", "1"], "the option zzzz does not exist", "--help"),
    "a stray word": (["stray"], "the option stray does not exist"),
    "a word for a number": (["--model.loss.beta", "big"], "expected float at model.loss.beta\n  | big"),
    "a fraction for a count": (["--data.batch_size", "1.5"], "expected int at data.batch_size\n  | 1.5"),
    "a word for a switch": (["--data.shuffle", "perhaps"], "expected bool at data.shuffle\n  | perhaps"),
    "a word that is no choice": (["--data.overlong", "cut"], "one of error, drop, truncate at data.overlong\n  | cut"),
    "no choice of the trainer": (["--trainer.precision", "7"], "16-mixed", "at trainer.precision\n  | 7"),
    "a word for a seed": (["--seed_everything", "x"], "expected bool or int at seed_everything\n  | x"),
    "a flag without its value": (["--data.batch_size"], "a value is missing at data.batch_size"),
    "a flag before another": (["--model.loss.beta", "--fresh"], "a value is missing at model.loss.beta"),
    "no such loss": (["--model.loss", "IPPOLoss"], "the class does not exist at model.loss\n  | IPPOLoss", "IPOLoss"),
    "no model at all": (["--model.policy.path", "null"], "the value may not be null at model.policy.path", "--model"),
    "no loss at all": (["--model.loss", "null"], "the value may not be null at model.loss", "--model.loss"),
    "no adapter any more": (["--model.policy.lora", "null"], "a flag cannot set this to null", "lora: null"),
    "null for a list": (["--model.policy.lora.modules_to_save", "null"], "in a config file: a flag cannot set it"),
    "nothing like a loss": (["--model.loss", "zzz"], "--model.loss takes", "DPOLoss", "HingeLoss", "RobustLoss"),
    "no such model": (["--model", "PPO"], "the class does not exist at model\n  | PPO", "DPOModule, SFTModule"),
    "no such data": (
        ["--data", "Rows"],
        "the class does not exist at data\n  | Rows",
        "PreferenceDataModule, RankedDataModule",
    ),
    "no such callback": (
        ["--trainer.callbacks+=Sample"],
        "the class does not exist at trainer.callbacks",
        "did you mean Samples?",
    ),
    "an option of a scheduler that is not named": (
        ["--model.lr_scheduler.warmup_steps", "3"],
        "an option of a class that is not named at model.lr_scheduler.warmup_steps",
        "--model.lr_scheduler CLASS, one of CosineWithWarmup",
    ),
    "an option of a logger that is not named": (
        ["--trainer.logger.project", "x"],
        "not named at trainer.logger.project",
        "--trainer.logger CLASS, one of TensorBoardLogger, WandbLogger",
    ),
    "an option of a strategy that is not named": (
        ["--trainer.strategy.static_graph", "true"],
        "not named at trainer.strategy.static_graph",
        "fix: name the class before it: --trainer.strategy CLASS\n",
    ),
    "an option of a reference that is not named": (
        ["--model.reference.alpha", "0.5"],
        "not named at model.reference.alpha",
        "fix: name the class before it: --model.reference Synced\n",
    ),
    "an option of another optimizer": (
        ["--model.optimizer.momentum", "0.9"],
        "error: AdamW has no option model.optimizer.momentum\n",
        "fit --model.optimizer.help AdamW lists its options",
    ),
    "an option of another divergence": (
        ["--model.loss.divergence.alpha", "0.3"],
        "ReverseKL has no option model.loss.divergence.alpha",
        "AlphaDivergence",
    ),
    "a name of several classes": (
        ["--model.lr_scheduler", "ReduceLROnPlateau"],
        "several classes have this name at model.lr_scheduler\n  | ReduceLROnPlateau",
        "fix: --model.lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau or lightning.",
    ),
    "an option below one that is no class": (["--output_dir.x", "3"], "the option output_dir.x does not exist"),
    "a value for a switch": (
        ["--fresh", "false"],
        "the option false does not exist",
        "--fresh and --print_config take no",
    ),
    "an empty value": (["--model.loss.beta="], "expected float at model.loss.beta\n"),
    "a class of another kind": (["--model.loss", "dpo_lightning.models.causal_lm.Lora"], "at model.loss"),
    "smoothing of a hinge": (
        ["--model.loss", "HingeLoss", "--model.loss.label_smoothing", "0.1"],
        "HingeLoss has no option model.loss.label_smoothing",
        "leave the option out",
    ),
    "lr of the optimizer": (["--model.optimizer.lr", "1"], "set by model.learning_rate", "--model.learning_rate"),
    "rate 0": (["--model.learning_rate", "0"], "learning_rate=0.0", "at model.learning_rate"),
    "rate below 0": (["--model.learning_rate=-1e-6"], "learning_rate=-1e-06"),
    "rate nan": (["--model.learning_rate", "nan"], "at model.learning_rate"),
    "rate .nan": (["--model.learning_rate", ".nan"], "learning_rate=nan"),
    "rate inf": (["--model.learning_rate", "inf"], "at model.learning_rate"),
    "rate .inf": (["--model.learning_rate", ".inf"], "learning_rate=inf"),
    "rate in words": (["--model.learning_rate", "slow"], "expected float at model.learning_rate\n  | slow"),
    "beta 0": (["--model.loss.beta", "0"], "beta=0.0 must be greater than 0 at DPOLoss.beta"),
    "beta below 0": (["--model.loss.beta", "-0.1"], "beta=-0.1 must be greater than 0"),
    "beta nan": (["--model.loss.beta", ".nan"], "beta=nan must be a finite number"),
    "smoothing of 0.5": (["--model.loss.label_smoothing", "0.5"], "label_smoothing=0.5 must lie in [0, 0.5)"),
    "an adapter to disable": (["--model.reference", "AdapterDisabled"], "model.reference", "--model.policy.lora.r 16"),
    "rows of another kind": (["--data", "SFTDataModule"], "DPOModule takes PreferenceDataModule at data"),
    "a package with a dash": (["--allow-class-path", "os; x"], "not a package name at --allow-class-path\n  | os; x"),
    "no package": (["--allow-class-path"], "not a package name at --allow-class-path"),
}

FILES = {
    "typo at the top": ("modle: {}\n", "the option modle", "did you mean model"),
    "typo in a section": ("trainer:\n  max_step: 1\n", "option trainer.max_step", "did you mean trainer.max_steps?"),
    "typo in a model": ("model:\n  init_args:\n    learnin_rate: 1\n", "did you mean model.learning_rate?"),
    "typo in a policy": ("model:\n  init_args:\n    policy: {paths: x}\n", "did you mean model.policy.path?"),
    "typo in a loss": (
        "model:\n  init_args:\n    loss:\n      init_args: {betta: 1}\n",
        "did you mean model.loss.beta?",
    ),
    "typo in a callback": (
        "trainer:\n  callbacks:\n  - class_path: Samples\n    init_args: {num_promts: 1}\n",
        "the option trainer.callbacks.num_promts does not exist",
        "did you mean trainer.callbacks.num_prompts?",
    ),
    "a list for a word": ("output_dir: [1]\n", "expected str at output_dir\n  | [1]"),
    "a wrong type": ("data:\n  init_args: {batch_size: two}\n", "expected int at data.batch_size\n  | two"),
    "a wrong loss": (
        "model:\n  init_args:\n    loss: DPOLos\n",
        "the class does not exist at model.loss",
        "did you mean DPOLoss?",
    ),
    "a number for a section": ("trainer: 3\n", "expected keys below trainer"),
    "a number for a class": ("data: 3\n", "at data\n  | 3"),
    "smoothing of a hinge": (
        "model:\n  init_args:\n    loss:\n      class_path: HingeLoss\n      init_args: {label_smoothing: 0.1}\n",
        "HingeLoss has no option model.loss.label_smoothing",
    ),
    "lr of the optimizer": (
        "model:\n  init_args:\n    optimizer:\n      class_path: torch.optim.AdamW\n      init_args: {lr: 1}\n",
        "set by model.learning_rate",
    ),
    "rate .nan": ("model:\n  init_args: {learning_rate: .nan}\n", "learning_rate=nan"),
    "rate -.inf": ("model:\n  init_args: {learning_rate: -.inf}\n", "learning_rate=-inf"),
    "beta .nan": ("model:\n  init_args:\n    loss:\n      init_args: {beta: .nan}\n", "must be a finite number"),
    "a key twice": ("trainer:\n  max_steps: 1\n  max_steps: 2\n", "'max_steps' is repeated", "overlay.yaml:3:3"),
    "a tab": ("trainer:\n\tmax_steps: 1\n", r"found character '\t'", "overlay.yaml:2:1"),
    "an open bracket": ("trainer: [1\n", "invalid YAML", "overlay.yaml:2:1"),
    "a wrong indent": ("trainer:\n   max_steps: 1\n  max_epochs: 1\n", "invalid YAML", "overlay.yaml:3:3"),
    "two documents": ("a: 1\n---\nb: 1\n", "another document", "overlay.yaml:2:1"),
    "a list as a key": ("? [a, b]\n: 1\n", "invalid YAML", "overlay.yaml:1:3"),
    "bottomless": ("[" * 5000, "invalid YAML"),
    "a part of itself": ("trainer: &a {callbacks: [*a]}\n", "invalid YAML: its anchors expand to", "overlay.yaml"),
    "a list in itself": ("trainer: &a [*a]\n", "invalid YAML: its anchors expand to"),
    "anchors without bound": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in itertools.pairwise("abcdefghi")),
        "invalid YAML: its anchors expand to",
    ),
    "an impossible date": ("a: 2024-13-45\n", "invalid YAML"),
    "Python in YAML": ("a: !!python/object/apply:os.abort []\n", "invalid YAML", "overlay.yaml:1:4"),
    "no text": (b"\xff\xfe\x00", "not text in UTF-8", "overlay.yaml"),
    "empty": ("", "a config has to be a mapping of keys"),
    "a list": ("- 1\n", "a config has to be a mapping of keys"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_wrong_flag_is_a_short_error(bench, monkeypatch, case):
    """Before a tokenizer or a model is touched, and without a trace in the folder."""
    loaded = watch_loading(monkeypatch)
    flags, *said = FLAGS[case]
    refused(bench.fit(*flags), 64, *said)
    assert not loaded
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_a_short_error(bench, monkeypatch, case):
    loaded = watch_loading(monkeypatch)
    text, *said = FILES[case]
    refused(bench.fit(*bench.overlay(text)), 64, *said)
    assert not loaded
    assert not (bench.folder / "run").exists()


def test_anchors_share_what_is_written_once(bench):
    """With merge keys, whose values those that stand beside them take the place of."""
    text = "data:\n  init_args: {<<: {batch_size: 2, max_length: 96}, batch_size: 3}\n"
    ran = bench.fit(*bench.overlay(text), "--print_config")
    assert ran.code == 0, ran
    assert "batch_size: 3\n" in ran.out


def test_an_attached_config_is_read_as_any_other(bench):
    """`-cFILE`, which argparse takes as well."""
    path = bench.overlay("trainer:\n  max_steps: 1\n  max_steps: 2\n")[1]
    for flag in (f"-c{path}", f"-c={path}", f"--config={path}"):
        refused(bench.fit(flag), 64, "'max_steps' is repeated")


@pytest.mark.parametrize("path", ["absent.yaml", ""])
def test_a_config_that_is_not_there(bench, path):
    refused(bench.fit("--config", path), 66, "the config cannot be read: No such file", "configs/")
    refused(bench.fit("--config=."), 66, "Is a directory")


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ([], "output_dir, data, model are missing"),
        (["--config", str(CONFIGS / "smoke.yaml"), "--output_dir", "x"], "data, model are missing"),
        (["--model=DPOModule", "--data=PreferenceDataModule", "--output_dir=x"], "model.policy.path is missing"),
    ],
)
def test_what_is_missing_is_named(flags, missing):
    """An overlay alone, or nothing at all, is no run."""
    refused(run("fit", *flags), 64, missing, "configs/dpo.yaml")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands_have_the_same_manners(bench, command):
    refused(bench.run(command, "--model.loss.betta", "1"), 64, "did you mean model.loss.beta?")


@pytest.mark.parametrize("given", ["5e-7", "5.0e-07", "0.0000005"])
def test_a_small_rate_is_a_number(bench, given):
    """PyYAML alone reads `5e-7` as a word."""
    for more in (
        ["--model.learning_rate", given],
        bench.overlay(f"model:\n  init_args:\n    learning_rate: {given}\n"),
    ):
        ran = bench.fit(*more, "--print_config")
        assert ran.code == 0, ran
        assert "learning_rate: 5.0e-07" in ran.out


def test_a_large_rate_is_warned_about(bench):
    ran = bench.fit("--model.learning_rate", "0.02", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "warning: learning_rate=0.02 is very large" in ran.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("callbacks+: [{class_path: EarlyStopping, monitor: eval/loss}]", "below `init_args:`"),
        ("callbacks+: [{class_path: EarlyStopping, init_args: {monitr: x}}]", "EarlyStopping has no option"),
        ("logger: {save_dir: x}", "below `init_args:`"),
    ],
)
def test_options_beside_their_class_are_not_taken_for_packages(bench, text, said):
    """A class that nobody named is no reason to propose `--allow-class-path`."""
    ran = bench.fit(*bench.overlay(f"trainer: {{{text}}}"))
    refused(ran, 64, said)
    assert "allow-class-path" not in ran.err
    assert "did you mean" not in ran.err


def test_a_flag_in_a_config_is_named_as_such(bench):
    refused(bench.fit(*bench.overlay("print_config: true")), 64, "print_config is given on the command line only")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("something new", "error: something new\nfix: "),
        ('Parser key "a.init_args.b":\n  something new', "error: something new at a.b\nfix: "),
        ("x" * 5000, "…"),
        ("", "error: "),
    ],
)
def test_an_unforeseen_message_stays_short(message, said):
    """The parser may learn new words: they are handed on, never a stack of them."""
    error = str(parser_error(message, Known([], {})))
    assert said in error
    assert len(error) < 500


def test_a_long_text_keeps_both_ends():
    assert shorten("a" * 300) == "a" * 300
    assert shorten("a" * 200 + "b" * 200) == "a" * 150 + " … " + "b" * 150
