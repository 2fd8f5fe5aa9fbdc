"""Low-rank adapters by peft: a new one, a trained one, and how either is saved."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError, lacks_memory
from dpo_lightning.log import logger
from dpo_lightning.models.folder_checks import call_loader, missing_weights_error, read_header, weights_digest
from dpo_lightning.models.folder_files import ADAPTER_CONFIG, damaged_file_error, read_json
from dpo_lightning.models.fused_experts import expert_warnings_silenced, takes_dropout
from dpo_lightning.models.patterns import check_module_patterns
from dpo_lightning.models.probe import list_generators
from dpo_lightning.models.size import check_ranks

LORA_KEY = "model.policy.lora"
ORIGIN_FILE = "dpo_lightning.json"
"""File beside the weights: the lineage of the model, and for an adapter the digest of its base."""

TRAINED = "default"
"""peft's name of the adapter that is trained; others are not saved."""

INITIALIZATIONS = re.compile(r"gaussian|orthogonal|mica|olora|pissa(_niter_[1-9]\d*)?")
"""Initializations of peft that need no data, besides `true`."""

NEEDS_DATA = {"eva": "the rows", "corda": "the rows", "lora_ga": "gradients", "loftq": "a quantization of its own"}
"""What other initializations of peft need."""

INITIAL_ADAPTERS: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""Initial weights of adapters that were subtracted from their base (PiSSA, OLoRA), by policy."""


@dataclass(frozen=True)
class Lora:
    """A new low-rank adapter (Hu et al. 2021, arXiv:2106.09685); the names of the options are peft's."""

    r: int = 16
    """Rank."""

    lora_alpha: int = 32
    """The update is scaled by `lora_alpha / r`."""

    lora_dropout: float = 0.05
    """Dropout before the adapter, in SFT. DPO turns it off: policy and reference have to be equal at the start. Fused
    experts have none.
    """

    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter; `all-linear` is every linear layer except the output head."""

    modules_to_save: list[str] | None = None
    """Modules that are trained in full beside the adapter, e.g. `[embed_tokens, lm_head]`."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)`, which keeps updates of large ranks from shrinking (rsLoRA, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train a magnitude per output beside the direction (DoRA, arXiv:2402.09353); slower."""

    init_lora_weights: bool | str = True
    """`true` (the adapter starts at zero), `gaussian`, `orthogonal`, `mica`; from the base's own weights: `pissa`
    (arXiv:2404.02948), `pissa_niter_4` (the same, faster), `olora` (arXiv:2406.01775).
    """

    def __post_init__(self) -> None:
        start = self.init_lora_weights
        needed = next((what for name, what in NEEDS_DATA.items() if str(start).startswith(name)), "")
        named = start is True or (isinstance(start, str) and INITIALIZATIONS.fullmatch(start) is not None)
        unnamed = f"needs {needed}, which is not supported" if needed else "is unknown"
        if start is False:
            unnamed = "adds random noise to the model; it exists for tests of peft"
        for name, good, reason in (
            ("r", self.r >= 1, "must be at least 1"),
            ("use_dora", not (self.use_dora and start == "mica"), "cannot be combined with mica"),
            ("r", start != "orthogonal" or self.r % 2 == 0, "must be even for orthogonal"),
            ("lora_alpha", self.lora_alpha > 0, "must be greater than 0"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "must be in [0, 1)"),
            ("init_lora_weights", named, unnamed),
        ):
            if not good:
                known = "true, gaussian, orthogonal, mica, olora, pissa or pissa_niter_4"
                other = {"init_lora_weights": known, "use_dora": "false"}
                fix = f"--{LORA_KEY}.{name} {other.get(name, 'with another value')}"
                raise UserError(
                    ExitCode.CONFIG, Problem(f"{name}={getattr(self, name)} {reason}", f"{LORA_KEY}.{name}"), fix=fix
                )

    @property
    def from_base(self) -> bool:
        """Whether the adapter is initialized from the base's weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora", "mica"))

    @property
    def changes_base(self) -> bool:
        """Whether the initial adapter is subtracted from the base's weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    @property
    def needs_full_weights(self) -> bool:
        """Whether the base may not be quantized: peft draws `orthogonal` in the data type of the base."""
        return self.from_base or self.init_lora_weights == "orthogonal"


def attach_lora(model: Any, lora: Lora) -> nn.Module:
    """Attach a new adapter to a model; base and adapter together start as the model."""
    from peft import LoraConfig, get_peft_model

    if lora.lora_dropout and not takes_dropout(model, lora.target_modules):
        logger.info("note: lora_dropout is 0 here: adapters of experts that are fused into one tensor have no dropout")
        lora = replace(lora, lora_dropout=0.0)
    options = asdict(lora)
    whole = find_saved_modules(model, lora)
    # A trained copy of a tied embedding has to stay tied to the head, or one of the two is lost on saving.
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    trains_ends = any(part is end for part in whole for end in ends)
    tied = trains_ends and bool(getattr(model.config, "tie_word_embeddings", False))
    layers, shared = list_linear_layers(model), find_shared_modules(model)
    check_module_patterns(options, [name for name, _ in model.named_modules()], ExitCode.CONFIG, LORA_KEY)
    try:
        with torch.random.fork_rng(list_generators(model), enabled="niter" in str(lora.init_lora_weights)):
            if "niter" in str(lora.init_lora_weights):
                torch.manual_seed(0)  # the decomposition is random: a resumed run has to subtract the same one
            with expert_warnings_silenced():
                policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", ensure_weight_tying=tied, **options))
        check_shapes(policy, lora)
    except (ValueError, RuntimeError, TypeError, re.error) as error:
        if lacks_memory(error):
            raise
        what, fix = str(error).splitlines()[0], f"the model's linear layers are {', '.join(layers)}"
        if "not found" in what and (names := split_names(lora.target_modules, layers)):
            what = f"target_modules={lora.target_modules} is a regular expression, and no module's whole name matches"
            fix = f"--{LORA_KEY}.target_modules '[{','.join(names)}]'"
        raise UserError(
            ExitCode.CONFIG, Problem(f"the adapter does not fit the model: {what}", LORA_KEY), fix
        ) from None
    # peft has subtracted the adapter from the base in memory, for which saving has to make up.
    if lora.changes_base:
        check_changed_layers(policy, lora, shared)
        INITIAL_ADAPTERS[policy] = {
            name: value.detach().clone() for name, value in policy.named_parameters() if ".lora_" in name
        }
    return policy


def find_saved_modules(model: Any, lora: Lora) -> list[nn.Module]:
    """Find the modules that `modules_to_save` names.

    Raises:
        UserError: a name matches no module. peft would ignore it and train nothing.
    """
    found, unknown = [], []
    for name in lora.modules_to_save or ():
        parts = [part for path, part in model.named_modules() if name and f".{path}".endswith(f".{name}")]
        found += parts
        unknown += [] if parts else [name or "''"]
    if unknown:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the model has no module {', '.join(unknown)}", f"{LORA_KEY}.modules_to_save"),
            fix="name modules of the model, such as embed_tokens or lm_head",
        )
    return found


def list_linear_layers(model: Any) -> list[str]:
    """List the last names of the layers that can get an adapter, without the output head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D)) and part is not head
    ]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def split_names(text: str | list[str], layers: list[str]) -> list[str]:
    """Return the names of which a text consists, if all are names of layers; an empty list for other values."""
    names = re.findall(r"[^\s,;|]+", text) if isinstance(text, str) else []
    return names if set(names) <= set(layers) else []


def find_shared_modules(model: nn.Module) -> set[int]:
    """Return the ids of modules that share a parameter with another one."""
    owners: dict[int, set[int]] = {}
    for part in model.modules():
        for value in part.parameters(recurse=False):
            owners.setdefault(id(value), set()).add(id(part))
    return {owner for several in owners.values() if len(several) > 1 for owner in several}


def check_changed_layers(policy: nn.Module, lora: Lora, shared: set[int]) -> None:
    """Refuse to change base weights that cannot be restored: those of two modules, and embeddings.

    Raises:
        UserError: with the layers' names.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    bases = {name: part.get_base_layer() for name, part in policy.named_modules() if isinstance(part, BaseTunerLayer)}
    bad = {
        name.rpartition(".")[2] for name, part in bases.items() if id(part) in shared or isinstance(part, nn.Embedding)
    }
    if bad:
        what = f"{lora.init_lora_weights} cannot change {', '.join(sorted(bad))}: embeddings"
        raise UserError(
            ExitCode.CONFIG,
            Problem(
                f"{what} and weights that two modules share are not restored on saving", f"{LORA_KEY}.target_modules"
            ),
            fix=f"leave lm_head and embed_tokens out of target_modules, or --{LORA_KEY}.init_lora_weights true",
        )


def check_shapes(policy: nn.Module, lora: Lora) -> None:
    """Check the shapes of an adapter's matrices: peft accepts a decomposition of a lower rank than `r`.

    Raises:
        ValueError: a shape is wrong.
    """
    for name, part in policy.named_modules():
        if (
            ".lora_" in name
            and isinstance(part, nn.Linear)
            and part.weight.shape != (part.out_features, part.in_features)
        ):
            layer = name.partition(".lora_")[0].rpartition(".")[2]
            raise ValueError(f"{lora.init_lora_weights} cannot give rank {lora.r} for {layer}")


def load_adapter(model: Any, folder: Path, base: Path) -> nn.Module:
    """Load a trained adapter onto its base, to be trained further.

    Raises:
        UserError: the adapter belongs to another base, or its weights are missing, unknown or not finite.
    """
    from peft import PeftModel, get_peft_model_state_dict

    origin = read_json(folder / ORIGIN_FILE) if (folder / ORIGIN_FILE).exists() else {}
    if "base_digest" in origin and base.is_dir() and origin["base_digest"] != weights_digest(base):
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter was trained on another base model", str(folder), str(base)),
            fix="write the base that it was trained on into base_model_name_or_path of adapter_config.json",
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise missing_weights_error(folder, weights.name)
    config = folder / ADAPTER_CONFIG
    options, names = read_json(config), [name for name, _ in model.named_modules()]
    check_module_patterns(options, names, ExitCode.MODEL, str(config))
    # Ranks are compared with the stored matrices before peft allocates memory for them.
    header = json.loads(read_header(weights))
    stored = set(header) - {"__metadata__"}
    check_ranks(options, [size for name in stored for size in header[name]["shape"]], str(config))
    with expert_warnings_silenced():
        policy = call_loader(partial(PeftModel.from_pretrained, model), str(folder), is_trainable=True)
    state = get_peft_model_state_dict(policy)
    wanted = set(state)
    # peft stores a tied head under its plain name, and loads it from there.
    mismatched = wanted - stored | stored - wanted - set(policy.state_dict())
    if mismatched:
        first = sorted(mismatched)[0]
        raise UserError(
            ExitCode.MODEL,
            Problem(f"{len(mismatched)} adapter weights do not match the model, first: {first}", str(weights)),
            fix="use the adapter with the base model that it was trained on",
        )
    broken = sorted(name for name in stored & wanted if not bool(torch.isfinite(state[name]).all()))
    if broken:
        raise damaged_file_error(weights, f"{len(broken)} of its weights are not finite, first: {broken[0]}")
    return policy


def check_precision(lora: Lora | None, precision: str) -> None:
    """Refuse DoRA's magnitudes in half precision, where the update of a usual step is rounded to 0.

    Raises:
        UserError: the adapter uses DoRA, and its parameters would be in half precision.
    """
    if lora is not None and lora.use_dora and precision in ("bf16-true", "16-true"):
        raise UserError(
            ExitCode.CONFIG,
            Problem(
                f"use_dora: with {precision}, updates of its magnitudes would be rounded to 0", "trainer.precision"
            ),
            fix=f"--trainer.precision {precision.replace('true', 'mixed')}, which keeps an adapter in float32",
        )
