"""Low-rank adapters by peft: a new one on a base, one that was trained before, and what of either is saved."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpo_lightning.log import logger
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.folder_files import damaged, read_json
from dpo_lightning.models.folder import loaded, no_weights, read_header, weights_digest
from dpo_lightning.models.size import check_ranks
from dpo_lightning.models.patterns import check_module_patterns

KEY = "model.policy.lora"
ORIGIN_FILE = "dpo_lightning.json"
"""Beside the weights: how they were made, and below an adapter the digest of the base that it was trained on."""

TRAINED = "default"
"""peft's name of the adapter that is trained; others are no part of the result."""

STARTS = re.compile(r"gaussian|orthogonal|mica|olora|pissa(_niter_[1-9]\d*)?")
"""How peft can begin an adapter without data of its own, besides `true`."""

FROM_DATA = {"eva": "the rows", "corda": "the rows", "lora_ga": "gradients", "loftq": "a quantization of its own"}
"""What other beginnings of peft need."""

TAKEN_OUT: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""The first values of adapters that were taken out of their base (PiSSA, OLoRA), by policy."""


@dataclass(frozen=True)
class Lora:
    """A new low-rank adapter (Hu et al. 2021, arXiv:2106.09685); the names are peft's."""

    r: int = 16
    """Rank."""

    lora_alpha: int = 32
    """The update is scaled by `lora_alpha / r`."""

    lora_dropout: float = 0.05
    """Dropout before the adapter, in SFT. DPO switches it off: policy and reference have to start as one function."""

    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter; `all-linear` is every linear layer but the output head."""

    modules_to_save: list[str] | None = None
    """Modules that are trained whole beside the adapter, e.g. `[embed_tokens, lm_head]`."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)`, which keeps large ranks in step (rsLoRA, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train a magnitude per output beside the direction (DoRA, arXiv:2402.09353); slower."""

    init_lora_weights: bool | str = True
    """`true` (changes nothing at first), `gaussian`, `orthogonal`, `mica`; out of the base's own weights: `pissa`
    (arXiv:2404.02948), `pissa_niter_4` (the same, faster), `olora` (arXiv:2406.01775)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        start = self.init_lora_weights
        needed = next((what for name, what in FROM_DATA.items() if str(start).startswith(name)), "")
        named = start is True or (isinstance(start, str) and STARTS.fullmatch(start) is not None)
        unnamed = f"needs {needed}, which is not given here" if needed else "is none that is known here"
        if start is False:
            unnamed = "begins with noise on top of the model, which peft has for its own tests"
        for name, good, reason in (
            ("r", self.r >= 1, "must be at least 1"),
            ("use_dora", not (self.use_dora and start == "mica"), "does not go with mica: a layer is one or the other"),
            ("r", start != "orthogonal" or self.r % 2 == 0, "must be even for orthogonal"),
            ("lora_alpha", self.lora_alpha > 0, "must be greater than 0"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "must lie in [0, 1)"),
            ("init_lora_weights", named, unnamed),
        ):
            if not good:
                known = "true, gaussian, orthogonal, mica, olora, pissa or pissa_niter_4"
                other = {"init_lora_weights": known, "use_dora": "false"}
                fix = f"--{KEY}.{name} {other.get(name, 'with another value')}"
                raise UserError(
                    ExitCode.CONFIG, Problem(f"{name}={getattr(self, name)} {reason}", f"{KEY}.{name}"), fix=fix
                )

    @property
    def from_base(self) -> bool:
        """Whether the adapter begins as a part of the base's weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora", "mica"))

    @property
    def takes_out(self) -> bool:
        """Whether that part is taken out of the base, which then is another one."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    @property
    def needs_whole(self) -> bool:
        """Whether it can begin on whole weights only: peft draws `orthogonal` in the number type of the base."""
        return self.from_base or self.init_lora_weights == "orthogonal"


def attach_lora(model: Any, lora: Lora) -> nn.Module:
    """A fresh adapter on a whole model; at first both together are the model."""
    from peft import LoraConfig, get_peft_model

    options = asdict(lora)
    whole = saved_whole(model, lora)
    # A trained copy of a tied embedding has to stay tied to the head, or one of the two is lost when saved.
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = bool(getattr(model.config, "tie_word_embeddings", False)) and any(
        part is end for part in whole for end in ends
    )
    layers, shared = linear_names(model), with_shared_weights(model)
    check_module_patterns(options, [name for name, _ in model.named_modules()], ExitCode.CONFIG, KEY)
    try:
        with torch.random.fork_rng(devices=[], enabled="niter" in str(lora.init_lora_weights)):
            if "niter" in str(lora.init_lora_weights):  # drawn, and the base changes with it: a run that goes on
                torch.manual_seed(0)  # has to find the same base
            policy = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", ensure_weight_tying=tied, **options))
        check_shapes(policy, lora)
    except (ValueError, RuntimeError, TypeError, re.error) as error:
        if "memory" in str(error).lower():
            raise
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the adapter does not fit the model: {str(error).splitlines()[0]}", KEY),
            fix=f"the model's linear layers are {', '.join(layers)}",
        ) from None
    if lora.takes_out:
        check_taken_out(policy, lora, shared)
        TAKEN_OUT[policy] = {
            name: value.detach().clone() for name, value in policy.named_parameters() if ".lora_" in name
        }
    return policy


def saved_whole(model: Any, lora: Lora) -> list[nn.Module]:
    """The modules that `modules_to_save` names.

    Raises:
        UserError: a name is that of none, of which peft says nothing, and trains nothing.
    """
    found, unknown = [], []
    for name in lora.modules_to_save or ():
        parts = [part for path, part in model.named_modules() if name and f".{path}".endswith(f".{name}")]
        found += parts
        unknown += [] if parts else [name or "''"]
    if unknown:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the model has no module {', '.join(unknown)}", f"{KEY}.modules_to_save"),
            fix="name modules of the model, such as embed_tokens or lm_head",
        )
    return found


def linear_names(model: Any) -> list[str]:
    """Last names of the layers that an adapter can be given, without the head."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [
        name for name, part in model.named_modules() if isinstance(part, (nn.Linear, Conv1D)) and part is not head
    ]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def with_shared_weights(model: nn.Module) -> set[int]:
    """Ids of the modules that have a parameter in common with another one."""
    owners: dict[int, set[int]] = {}
    for part in model.modules():
        for value in part.parameters(recurse=False):
            owners.setdefault(id(value), set()).add(id(part))
    return {owner for several in owners.values() if len(several) > 1 for owner in several}


def check_taken_out(policy: nn.Module, lora: Lora, shared: set[int]) -> None:
    """See that nothing is taken out of what another module has as well, or of embeddings, which are not put back.

    Args:
        policy: the base with its adapter.
        lora: how it begins.
        shared: ids of the modules with weights that are not theirs alone.

    Raises:
        UserError: with the layers' names.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    bases = {name: part.get_base_layer() for name, part in policy.named_modules() if isinstance(part, BaseTunerLayer)}
    bad = {
        name.rpartition(".")[2] for name, part in bases.items() if id(part) in shared or isinstance(part, nn.Embedding)
    }
    if bad:
        what = f"{lora.init_lora_weights} would take its start out of {', '.join(sorted(bad))}: embeddings"
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"{what} and weights that two modules share have to stay whole", f"{KEY}.target_modules"),
            fix=f"leave lm_head and embed_tokens out of target_modules, or --{KEY}.init_lora_weights true",
        )


def check_shapes(policy: nn.Module, lora: Lora) -> None:
    """See that each matrix of an adapter has the shape that it is used with: peft takes what a decomposition gives.

    Raises:
        ValueError: one has not.
    """
    for name, part in policy.named_modules():
        if (
            ".lora_" in name
            and isinstance(part, nn.Linear)
            and part.weight.shape != (part.out_features, part.in_features)
        ):
            layer = name.partition(".lora_")[0].rpartition(".")[2]
            raise ValueError(f"{lora.init_lora_weights} gives no rank of {lora.r} for {layer}")


def load_adapter(model: Any, folder: Path, base: Path) -> nn.Module:
    """An adapter that was trained before, to be trained further."""
    from peft import PeftModel, get_peft_model_state_dict

    origin = read_json(folder / ORIGIN_FILE) if (folder / ORIGIN_FILE).exists() else {}
    if "base_digest" in origin and base.is_dir() and origin["base_digest"] != weights_digest(base):
        raise UserError(
            ExitCode.MODEL,
            Problem("the adapter was trained on another base model", str(folder), str(base)),
            fix="give it the base that it was trained on, in base_model_name_or_path of its adapter_config.json",
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise no_weights(folder, weights.name)
    config = folder / "adapter_config.json"
    options, names = read_json(config), [name for name, _ in model.named_modules()]
    check_module_patterns(options, names, ExitCode.MODEL, str(config))
    header = json.loads(read_header(weights))
    stored = set(header) - {"__metadata__"}
    check_ranks(options, [size for name in stored for size in header[name]["shape"]], str(config))
    policy = loaded(partial(PeftModel.from_pretrained, model), str(folder), is_trainable=True)
    state = get_peft_model_state_dict(policy)
    wanted = set(state)
    # peft stores a tied head under its plain name, and loads it back there.
    strange = wanted - stored | stored - wanted - set(policy.state_dict())
    if strange:
        first = sorted(strange)[0]
        raise UserError(
            ExitCode.MODEL,
            Problem(f"{len(strange)} adapter weights do not match the model, first: {first}", str(weights)),
            fix="use the adapter with the base model that it was trained on",
        )
    broken = sorted(name for name in stored & wanted if not bool(torch.isfinite(state[name]).all()))
    if broken:
        raise damaged(weights, f"{len(broken)} of its weights are not finite, first: {broken[0]}")
    return policy


def save_adapter(model: Any, folder: Path, base_path: str) -> None:
    """Write an adapter that belongs to the untouched base, whatever it began as."""
    base = Path(base_path)
    model.peft_config[TRAINED].base_model_name_or_path = str(base.resolve()) if base.is_dir() else base_path
    start = TAKEN_OUT.get(model)
    state = None if start is None else put_back(model.state_dict(), start)
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=[TRAINED], state_dict=state)
    if start is not None:
        config_file = folder / "adapter_config.json"
        config = read_json(config_file)
        scale = 2**0.5 if config["use_rslora"] else 2  # twice the rank, and the same scaling
        config |= {"r": 2 * config["r"], "lora_alpha": scale * config["lora_alpha"], "init_lora_weights": True}
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        logger.info(f"adapter: saved with rank {config['r']}, its start put back, so that it fits the base as it is on disk")
    if base.is_dir():
        (folder / ORIGIN_FILE).write_text(json.dumps({"base_digest": weights_digest(base)}) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # peft's own, empty card


def put_back(state: dict[str, Any], start: dict[str, Tensor]) -> dict[str, Any]:
    """The weights with which an adapter on the untouched base is what its own is on a base that lacks its start.

    `W - s B0 A0 + s B A = W + s [B | -B0] [A ; A0]`; magnitudes (DoRA) and whole modules stay as they are.
    """
    converted = dict(state)
    for name, first in start.items():
        first = first.to(state[name])
        if ".lora_A." in name:
            converted[name] = torch.cat([state[name], first], dim=0)
        elif ".lora_B." in name:
            converted[name] = torch.cat([state[name], -first], dim=1)
    return converted
