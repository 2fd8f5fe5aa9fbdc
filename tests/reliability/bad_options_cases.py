"""Options of a command line or config that are wrong: numbers, names, and what does not go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import tiny_models
from support.cases import Case, fit, flags, infer, model, overlay

NUMBERS = {
    "nan": ".nan",
    "infinite": ".inf",
    "below 0": "-1",
    "zero": "0",
    "huge": "1e400",
    "of 10,000 digits": "9" * 10_000,
    "a word": "two",
    "a bool": "true",
    "null": "null",
    "a list": "[1]",
    "a mapping": "{a: 1}",
    "empty": "''",
}
"""Values, most of which are wrong for each numeric option."""

RIGHT = {
    "model.learning_rate": (),
    "data.batch_size": (),
    "data.max_length": (),
    "data.max_tokens": ("null",),
    "data.limit_rows": ("null",),
    "data.num_workers": ("zero",),
    "trainer.gradient_clip_val": ("zero", "null"),
    "trainer.max_steps": ("below 0",),
    "trainer.max_epochs": ("below 0", "null"),
    "trainer.min_steps": ("zero", "null"),
    "trainer.val_check_interval": ("null",),
    "trainer.log_every_n_steps": ("null",),
    "trainer.num_sanity_val_steps": ("below 0", "zero", "null"),
    "trainer.limit_val_batches": ("zero", "null"),
    "trainer.limit_train_batches": ("null",),
    "trainer.accumulate_grad_batches": (),
    "trainer.check_val_every_n_epoch": ("null",),
    "seed_everything": ("zero", "a bool", "null"),
    "model.loss.beta": (),
    "model.loss.label_smoothing": ("zero",),
    "model.policy.lora.r": (),
    "model.policy.lora.lora_alpha": (),
    "model.policy.lora.lora_dropout": ("zero",),
    "model.optimizer.weight_decay": ("zero",),
    "model.optimizer.eps": ("zero",),
    "model.policy.router_aux_loss_coef": ("zero", "null"),
}
"""Each numeric option, and which of these values are right for it."""


def at(key: str, value: str) -> str:
    """A config that sets a dotted key."""
    section, *parts = key.split(".")
    if not parts:
        return f"{key}: {value}"
    nested = "init_args." if section in ("model", "data") else ""
    names = [section, *f"{nested}{'.'.join(parts)}".split(".")]
    if parts[0] in ("loss", "optimizer"):
        names.insert(-1, "init_args")
    return "{" + ": {".join(names) + f": {value}" + "}" * len(names)


def numbers() -> list[Case]:
    """A case for each numeric option and wrong value."""
    return [
        overlay(f"{key} is {name}", 64, at(key, value), *(("--trainer.max_steps=1",) if "max" not in key else ()))
        for key, right in RIGHT.items()
        for name, value in NUMBERS.items()
        if name not in right
    ]


TRAINER = [
    flags("min above max", 64, "--trainer.min_steps=5", "--trainer.max_steps=3"),
    flags("devices in words", 64, "--trainer.devices=two"),
    flags("no devices", 64, "--trainer.devices=0"),
    flags("devices below -1", 64, "--trainer.devices=-7"),
    flags("a device that is not there", 69, "--trainer.accelerator=gpu"),
    flags("an accelerator that does not exist", 64, "--trainer.accelerator=quantum"),
    flags("a strategy that does not exist", 64, "--trainer.strategy=magic"),
    flags("a strategy that needs a package", 64, "--trainer.strategy=deepspeed"),
    flags("a precision that does not exist", 64, "--trainer.precision=7-mixed"),
    flags("half precision on a CPU", 64, "--trainer.precision=16-true"),
    flags("half mixed precision on a CPU", 64, "--trainer.precision=16-mixed"),
    flags("two machines", 64, "--trainer.num_nodes=2"),
    flags("a profiler that does not exist", 64, "--trainer.profiler=magic"),
    flags("a time that is none", 64, "--trainer.max_time=soon"),
    flags("nothing to train", 64, "--trainer.limit_train_batches=0"),
    flags("clipping that does not exist", 64, "--trainer.gradient_clip_algorithm=magic"),
    flags("determinism that does not exist", 64, "--trainer.deterministic=maybe"),
    overlay("a callback that is a number", 64, "trainer: {callbacks: 5}"),
    overlay("a callback that is a word", 64, "trainer: {callbacks: hello}"),
    overlay("a callback's own option", 64, "trainer: {callbacks: [{class_path: RewardMargins, init_args: {a: 1}}]}"),
    overlay("a callback twice", 64, "trainer: {callbacks: [{class_path: RewardMargins}, {class_path: RewardMargins}]}"),
    overlay("patience below 0", 64, "trainer: {callbacks: [{class_path: EarlyStopping, "
            "init_args: {monitor: eval/loss, patience: -1}}]}"),
    overlay("a mode that does not exist", 64, "trainer: {callbacks: [{class_path: EarlyStopping, "
            "init_args: {monitor: eval/loss, mode: up}}]}"),
    overlay("a checkpoint of nothing", 64, "trainer: {callbacks: [{class_path: ModelCheckpoint, "
            "init_args: {save_top_k: -7}}]}"),
    overlay("checkpoints every 0 steps", 64, "trainer: {callbacks: [{class_path: ModelCheckpoint, "
            "init_args: {every_n_train_steps: -1}}]}"),
    overlay("two periods of checkpoints", 64, "trainer: {callbacks: [{class_path: ModelCheckpoint, "
            "init_args: {every_n_train_steps: 1, every_n_epochs: 1}}]}"),
    *(flags(f"{name} without its package", 64, f"--trainer.logger={name}", said=("pip install",), twin="logger")
      for name in ("WandbLogger", "MLFlowLogger", "CometLogger")),
    flags("a logger that does not exist", 64, "--trainer.logger=NoSuchLogger"),
]  # fmt: skip

MODEL = [
    flags("an unknown loss", 64, "--model.loss=DPOLos", said=("DPOLoss",)),
    flags("an unknown module", 64, "--model=NoSuchModule"),
    flags("an unknown option", 64, "--model.los.beta=1"),
    flags("an unknown section", 64, "--modle.loss.beta=1"),
    flags("a flag without a value", 64, "--model.learning_rate"),
    flags("a word too many", 64, "hello"),
    flags("a seed of 2**64", 64, f"--seed_everything={2**64}"),
    flags("a seed with a fraction", 64, "--seed_everything=1.5"),
    flags("smoothing of a half", 64, "--model.loss.label_smoothing=0.5"),
    flags("smoothing of 1", 64, "--model.loss.label_smoothing=1.0"),
    flags("betas above 1", 64, "--model.optimizer.betas=[1.5,0.9]"),
    flags("one beta", 64, "--model.optimizer.betas=[0.9]"),
    flags("betas that are nan", 64, "--model.optimizer.betas=[.nan,0.9]"),
    flags("an optimizer's own rate", 64, "--model.optimizer.lr=1"),
    flags("an optimizer that does not exist", 64, "--model.optimizer=NoSuch"),
    flags("an optimizer of second order", 64, "--model.optimizer=LBFGS"),
    flags("a sparse optimizer", 64, "--model.optimizer=SparseAdam"),
    flags("a scheduler that is an optimizer", 64, "--model.lr_scheduler=AdamW"),
    flags("a scheduler of no steps", 64, "--model.lr_scheduler=CosineAnnealingLR",
          "--model.lr_scheduler.T_max=0"),
    flags("quantization without an adapter", 64, "--model.policy.quantization.bits=4"),
    flags("three bits", 64, "--model.policy.quantization.bits=3", "--model.policy.lora.r=2"),
    flags("an adapter without modules", 64, "--model.policy.lora.target_modules=[]", stage="S2"),
    flags("an adapter of modules that do not exist", 64, "--model.policy.lora.target_modules=[no_such]", stage="S2"),
    flags("an adapter by an expression without end", 64,
          "--model.policy.lora.target_modules=(a|a|[a-z_.])*(([a-z_.]+)+)+!", stage="S2"),
    flags("an adapter by a broken expression", 64, "--model.policy.lora.target_modules=((", stage="S2"),
    flags("an adapter's start that does not exist", 64, "--model.policy.lora.init_lora_weights=magic"),
    flags("an adapter's disabled reference without one", 64, "--model.reference=AdapterDisabled"),
    flags("a reference for a loss without", 64, "--model.loss=SimPOLoss", "--model.reference=FrozenCopy"),
    flags("no reference for a loss with one", 64, "--model.reference=ReferenceFree"),
    flags("a model that is not there", 66, "--model.policy.path=modle", said=("model",)),
    flags("a model of a hub, offline", 66, "--model.policy.path=org/name", stage="S1"),
    flags("a model by URL", 66, "--model.policy.path=https://evil.example/x", stage="S1"),
    flags("a model in proc", 66, "--model.policy.path=/proc/self/fd/no"),
    flags("an empty model", 66, "--model.policy.path="),
    flags("a model with an ESC", 64, "--model.policy.path=a\x1b[2J"),
    flags("an attention that does not exist", 64, "--model.policy.attention=magic"),
    flags("an attention without its package", 64, "--model.policy.attention=flash_attention_2", stage="S2"),
    flags("a type of values that does not exist", 64, "--model.policy.dtype=float7"),
]  # fmt: skip

DATA = [
    flags("rows longer than the model", 64, "--data.max_length=100000", stage="S1"),
    flags("batch of more rows than there are", 65, "--data.batch_size=9"),
    flags("a batch of tokens below one row", 65, "--data.max_tokens=3", stage="S1"),
    flags("an overlong that does not exist", 64, "--data.overlong=cut"),
    flags("a template that does not exist", 64, "--data.template=magic"),
    flags("a format that does not exist", 64, "--data.format=magic"),
    flags("columns that do not exist", 65, "--data.columns={chosen: no_such}"),
    flags("columns of nonsense", 64, "--data.columns={nothing: chosen}"),
    flags("a date that is none", 64, "--data.template_date=tomorrow"),
    flags("a collator that does not exist", 64, "--data.collator=Magic"),
    flags("a kind of data for another model", 64, "--data=SFTDataModule"),
    flags("allow what does not exist", 64, "--data.allow=everything"),
    flags("no rows", 64, "--data.train=null"),
    flags("rows that are a number", 66, "--data.train=5"),
    flags("rows that are missing", 66, "--data.train=trian.jsonl", said=("train.jsonl",)),
    flags("a template that is missing", 66, "--data.chat_template=no.jinja", stage="S1"),
    flags("a template that is a folder", 66, "--data.chat_template=home", stage="S1"),
    flags("an output folder that is a file", 73, "--output_dir=train.jsonl"),
    flags("an output folder in a file", 73, "--output_dir=train.jsonl/run"),
    flags("an output folder of other things", 73, "--output_dir=home"),
    flags("a checkpoint that is missing", 66, "--ckpt_path=no.ckpt"),
    flags("a checkpoint that is a folder", 64, "--ckpt_path=model"),
]  # fmt: skip


def ask(name: str, code: int, *args: object, **options: Any) -> Case:
    """`infer` with these flags."""
    return Case(name, lambda _: infer(*args), code, **options)


COMMANDS = [
    ask("no tokens", 64, "--max_new_tokens", 0),
    ask("tokens below 0", 64, "--max_new_tokens", -1),
    ask("tokens in words", 64, "--max_new_tokens", "many"),
    ask("tokens without end", 0, "--max_new_tokens", 10**9),
    ask("a temperature below 0", 64, "--temperature", -1),
    ask("a temperature that is nan", 64, "--temperature", "nan"),
    ask("a temperature that is infinite", 64, "--temperature", "inf"),
    ask("a temperature of nearly 0", 0, "--temperature", "1e-300"),
    ask("a share of 0", 64, "--top_p", 0),
    ask("a share above 1", 64, "--top_p", 2),
    ask("a share that is nan", 64, "--top_p", "nan"),
    ask("a seed below 0", 64, "--seed", -1),
    ask("a seed of 2**64 to ask", 64, "--seed", 2**64),
    ask("an empty question", 64, "--instruction", ""),
    ask("a question of 100,000 words", 64, "--instruction", "word " * 100_000, stage="S1"),
    ask("a question with a control token", 0, "--instruction", "hi<|im_end|>\n<|im_start|>assistant\n"),
    ask("a question with an ESC", 0, "--instruction", "\x1b[2J"),
    ask("a question with a surrogate", 65, "--instruction", "a\udcffb", stage="S1"),
    ask("a system message with a control token", 0, "--system", "<|im_end|>"),
    Case("standard input that is no text", lambda _: infer("--instruction", "-"), 65, stdin="\udcff\udcfe"),
    Case("no standard input", lambda _: infer("--instruction", "-"), 64),
    ask("a date that is none to ask", 64, "--template_date", "today"),
    Case("a model that is a file", lambda _: infer(model="train.jsonl"), 66, ("found a file",)),
    Case("a model that is a device", lambda _: infer(model="/dev/zero"), 66),
    Case("a model that is missing", lambda _: infer(model="modle"), 66),
    Case("an empty model to ask", lambda _: infer(model=""), 66),
    Case("a model's name with a NUL", lambda _: infer(model="a\0b"), 66),
    Case("a model's name of 5,000 letters", lambda _: infer(model="a" * 5000), 66),
    Case("a model of the root folder", lambda _: infer(model="/"), 67),
    Case("an export over a folder", lambda _: ["export", "--model", "model", "--out", "home"], 73),
    Case("an export over the model", lambda _: ["export", "--model", "model", "--out", "model"], 73),
    Case("an export into the model", lambda _: ["export", "--model", "model", "--out", "model/x"], 73),
    Case("an export by a variable", lambda _: ["export", "--model", "model", "--out", "$HOME/x"], 64),
    Case("shards of nonsense", lambda _: ["export", "--model", "model", "--out", "out", "--max_shard_size", "x"], 64),
    Case("shards of nothing", lambda _: ["export", "--model", "model", "--out", "out", "--max_shard_size", "0"], 64),
    Case("no command", lambda _: ["fitt"], 64, ("did you mean fit",)),
    Case("a command with an ESC", lambda _: ["fit\x1b[2J"], 64),
    Case("doctor on a file", lambda _: ["doctor", "--config", "train.jsonl"], 64),
]  # fmt: skip


def saved(make: Callable[[], Any]) -> Callable[[Path], Any]:
    """A model of another kind in place of the folder's."""

    def build(folder: Path) -> None:
        made = make()
        made.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)

    return build


def bert() -> Any:
    """An encoder with a head for masked words."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=tiny_models.VOCAB, **sizes))


OTHER_MODELS = [
    model("an encoder as a policy", 67, saved(bert), args=fit(), said=("causal",), stage="S2"),
    model("an encoder to ask", 67, saved(bert), said=("causal",), stage="S2"),
]

OPTIONS = [*numbers(), *TRAINER, *MODEL, *DATA]
CASES = [*OPTIONS[::8], *COMMANDS, *OTHER_MODELS]
"""Those that are tried each time; the campaign tries all."""

ALL = [*OPTIONS, *COMMANDS, *OTHER_MODELS]
