"""`ModelSource`: a model that a command reads, out of a model folder, an adapter folder, or a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpo_lightning.config.files import read_config
from dpo_lightning.data.cache.file_digests import hash_file
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.runs.checkpoint_files import find_damage, read_manifest
from dpo_lightning.runs.checkpoint_shards import read_shards
from dpo_lightning.runs.lineage import Stage, folder_digest, trace_stages
from dpo_lightning.runs.resume import (
    KEY,
    WEIGHTS,
    checkpoint_error,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    run_config,
)

POLICY = "policy."
"""How the names of the policy's weights begin in a checkpoint."""


class ModelSource(NamedTuple):
    """A model, before its weights are loaded.

    Attributes:
        path: as it was given.
        spec: the model; of a checkpoint, the one with which its run began.
        digest: of the weights.
        stages: that made the weights.
        trained: the weights of a checkpoint by their names in the model; None where the folder has them.
    """

    path: str
    spec: CausalLM
    digest: str
    stages: Sequence[Stage]
    trained: Mapping[str, Tensor] | None = None

    @property
    def adapted(self) -> bool:
        """Whether the model is an adapter above its base."""
        return self.spec.lora is not None or self.spec.adapter_folder() is not None

    def build(self) -> Any:
        """Load the model, in float32.

        Raises:
            UserError: the model that the run began with cannot be loaded, or has other weights than the checkpoint.
        """
        model: Any = self.spec.build()
        if self.trained is not None:
            load_trained(model, self.trained, self.path)
        return model.eval()


def open_model(path: str, attention: Any = "auto") -> ModelSource:
    """Find out what a path names, and read how it was made; a checkpoint's tensors stay on the disk.

    Args:
        path: a model folder, an adapter folder, a hub id, or a `.ckpt` file of a run.
        attention: how the model computes attention.

    Raises:
        UserError: 66, the checkpoint is missing, damaged, no checkpoint, or not in the folder of its run; 67, the
            folder is no model.
    """
    if not path.endswith(".ckpt"):
        spec = CausalLM(path, attention=attention)
        spec.adapter_folder()  # checks the folder
        return ModelSource(path, spec, folder_digest(path), trace_stages(path))
    try:
        file = find_checkpoint(path)
        content = read_shards(read_whole(file), file.parent)
    except UserError as error:
        problems = [replace(each, where="--model") if each.where == KEY else each for each in error.problems]
        raise UserError(error.code, problems, error.fix) from None
    recorded = run_config(file)
    if recorded is None:
        what = Problem("no config.yaml of a run in the folders that contain this checkpoint", "--model", path)
        raise UserError(ExitCode.INPUT_MISSING, what, fix="leave the checkpoint in the folder of its run")
    config = read_config(str(recorded))
    spec = read_spec(config["model"], attention, str(recorded))
    stage = read_stage(config, spec, hash_file(file), int(content["global_step"]))
    trained = {name[len(POLICY) :]: value for name, value in content["state_dict"].items() if name.startswith(POLICY)}
    return ModelSource(path, spec, stage.digest, [*trace_stages(spec.path), stage], trained)


def read_whole(file: Path) -> Mapping[str, Any]:
    """Read a checkpoint after its checksums have been compared.

    Raises:
        UserError: 66, it is damaged.
    """
    entries = read_manifest(file.parent)
    if entries is None or file.name not in entries:
        return read_checkpoint(file, WEIGHTS)
    damage = find_damage(file, entries)
    if damage:
        raise checkpoint_error(f"the checkpoint {damage}", file)
    return load_checkpoint(file, WEIGHTS)


def read_spec(module: Mapping[str, Any], attention: Any, where: str) -> CausalLM:
    """Return the policy that a run's configuration describes, in float32 and not quantized.

    Raises:
        UserError: 66, the configuration does not describe one.
    """
    try:
        policy = module["init_args"]["policy"]
        lora = policy.get("lora")
        return CausalLM(policy["path"], attention=attention, lora=lora and Lora(**lora))
    except (KeyError, TypeError, AttributeError) as error:
        what = Problem(f"this configuration names no policy ({type(error).__name__}: {error})", "model", where)
        raise UserError(ExitCode.INPUT_MISSING, what, fix="use the config.yaml that the run wrote") from None


def read_stage(config: Mapping[str, Any], spec: CausalLM, digest: str, step: int) -> Stage:
    """Return the record of a run up to a checkpoint.

    Args:
        config: the run's configuration.
        spec: the policy.
        digest: of the checkpoint.
        step: the optimizer steps that it has.
    """
    options = config["model"]["init_args"]
    settings = {"learning rate": str(options.get("learning_rate"))}
    if options.get("loss"):
        reference = options.get("reference") or {"class_path": "default"}
        name = class_name(reference)
        # A path of `Precomputed` is that of a file of log-probabilities.
        other = (reference.get("init_args") or {}).get("model" if name == "Precomputed" else "path")
        settings |= {"loss": format_call(options["loss"]), "reference": f"{name} {other}" if other else name}
    policy = asdict(spec)
    if options["policy"].get("quantization"):
        quantization = Quantization(**options["policy"]["quantization"])
        policy["quantization"] = asdict(quantization.under(str(config["trainer"].get("precision"))))
    return Stage(class_name(config["model"]), policy, folder_digest(spec.path), digest, step, settings)


def class_name(section: Mapping[str, Any]) -> str:
    """Return the name of the class that a section of a configuration names."""
    return str(section.get("class_path")).rpartition(".")[2]


def format_call(value: Any) -> str:
    """Format a section of a configuration as the call that makes its object."""
    if isinstance(value, Mapping) and "class_path" in value:
        options = ", ".join(f"{name}={format_call(each)}" for name, each in (value.get("init_args") or {}).items())
        return f"{class_name(value)}({options})"
    return repr(value)


@torch.no_grad()
def load_trained(model: Any, trained: Mapping[str, Tensor], path: str) -> None:
    """Put the weights of a checkpoint into the model that its run began with.

    Raises:
        UserError: 64, the model trains other weights, or some of another shape.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    expected = {name for name, value in own.items() if value.requires_grad}
    wrong = sorted((expected - trained.keys()) | (trained.keys() - own.keys()))
    wrong += [name for name in trained if name in own and trained[name].shape != own[name].shape]
    if wrong:
        what = f"this checkpoint does not fit the model of the run in whose folder it lies ({wrong[0]})"
        fix = "if it was copied there, put it back into the folder of its own run; or put back the model of this run"
        raise UserError(ExitCode.CONFIG, Problem(what, "--model", path), fix)
    for name, value in trained.items():
        own[name].copy_(value)
