"""Causal language models from a folder or a hub: whole, with a new LoRA, or with an adapter that was trained before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.kernels import install
from dpo_lightning.model_folder import (
    KEY,
    adapter_base,
    check_folder,
    count_values,
    loaded,
    no_weights,
    read_header,
    read_json,
    weights_digest,
)

ORIGIN_FILE = "dpo_lightning.json"
"""Beside the weights: how they were made, and below an adapter the digest of the base that it was trained on."""

TRAINED = "default"
"""peft's name of the adapter that is trained; others, such as a reference's, are no part of the result."""


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, good, reason in (
            ("r", self.r >= 1, "must be at least 1"),
            ("lora_alpha", self.lora_alpha > 0, "must be greater than 0"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "must lie in [0, 1)"),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} {reason}", f"model.policy.lora.{name}"),
                    fix=f"give --model.policy.lora.{name} another value",
                )


@dataclass(frozen=True)
class CausalLM:
    """The policy: which weights, in which precision, with which adapter."""

    path: str
    """A model folder, an adapter folder (its adapter is trained further), or a hub id."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the stored weights; what they compute in is `--trainer.precision`."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel. `auto` takes rows that share prefixes where the model does; the others take padded rows."""

    lora: Lora | None = None
    """Train a new adapter instead of all weights."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third slower, a fraction of the memory."""

    compile: bool = False
    """Compile the decoder layers with `torch.compile`: 10 to 30 s at the start, then faster, and less memory."""

    def build(self) -> nn.Module:
        """Load the weights and attach the adapter.

        Raises:
            UserError: the folder is not a whole model of this kind, or its adapter belongs to another base.
        """
        adapter = self.adapter_folder()
        model = load_base(self.base_path(), self.dtype, self.attention)
        if adapter is not None:
            if self.lora is not None:
                say("note: the policy is an adapter folder: its own adapter is trained further, `lora` is not used")
            model = load_adapter(model, adapter, Path(self.base_path()))
        elif self.lora is not None:
            model = attach_lora(model, self.lora)
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def adapter_folder(self) -> Path | None:
        """The folder, where it holds an adapter and not a whole model."""
        folder = check_folder(self.path)
        return folder if folder is not None and (folder / "adapter_config.json").exists() else None

    def base_path(self) -> str:
        """The path or hub id of the whole model."""
        adapter = self.adapter_folder()
        return self.path if adapter is None else adapter_base(adapter)

    def trained_values(self) -> int:
        """Weights that a full fine-tuning trains; 0 where an adapter is trained or the model is not on disk yet."""
        folder = check_folder(self.path)
        if folder is None or self.lora is not None or self.adapter_folder() is not None:
            return 0
        return count_values(folder)

    def config(self) -> Any:
        """The transformers configuration of the whole model."""
        from transformers import AutoConfig

        return loaded(AutoConfig.from_pretrained, self.base_path(), trust_remote_code=False)

    def tokenizer(self) -> Any:
        """The tokenizer, taken from the adapter's folder where that has one.

        Raises:
            UserError: there is none, or it has ids that the model has no embedding for.
        """
        from transformers import AutoTokenizer

        adapter = self.adapter_folder()
        own = adapter is not None and (adapter / "tokenizer_config.json").exists()
        path = self.path if own else self.base_path()
        tokenizer = loaded(AutoTokenizer.from_pretrained, path, trust_remote_code=False)
        rows = self.config().get_text_config().vocab_size
        last = max(tokenizer.get_vocab().values(), default=-1)  # ids may have gaps: their number says nothing
        if last >= rows:
            raise UserError(
                ExitCode.MODEL,
                Problem(f"the tokenizer has ids up to {last}, the model embeds {rows}", KEY, self.path),
                fix="resize the model's embeddings and save it, or use the tokenizer that belongs to it",
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                ExitCode.MODEL,
                Problem("the tokenizer has no EOS token: an answer could not end", KEY, self.path),
                fix="set eos_token in the folder's tokenizer_config.json",
            )
        return tokenizer

    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer according to the model's generation config."""
        from transformers import GenerationConfig

        try:
            ids = GenerationConfig.from_pretrained(self.base_path()).eos_token_id
        except OSError:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids or ())


def load_base(path: str, dtype: str, attention: str) -> Any:
    """A whole model whose every weight came from its files."""
    from transformers import AutoModelForCausalLM

    model, info = loaded(
        AutoModelForCausalLM.from_pretrained,
        path,
        dtype=dtype,
        attn_implementation=None if attention == "auto" else attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, with their names
    )
    problems = [
        Problem(f"{len(keys)} {kind} weights, first: {sorted(map(str, keys))[0]}", KEY, path)
        for kind, keys in (
            ("missing", info["missing_keys"]),
            ("unknown", info["unexpected_keys"]),
            ("misshapen", info["mismatched_keys"]),
        )
        if keys
    ]
    if problems:
        raise UserError(
            ExitCode.MODEL,
            problems,
            fix="use a folder whose config.json belongs to its weights (copy it again)",
        )
    reason = install(model) if attention == "auto" else ""
    if reason:
        say(f"layout: padded rows ({reason})")
    return model


def attach_lora(model: Any, lora: Lora) -> nn.Module:
    """A fresh adapter on a whole model; at first it changes nothing."""
    from peft import LoraConfig, get_peft_model

    options = asdict(lora)
    known = [name for name, _ in model.named_modules()]
    unknown = [name for name in lora.modules_to_save or () if not any(part.endswith(name) for part in known)]
    if unknown:  # peft says nothing and trains nothing
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the model has no module {', '.join(unknown)}", "model.policy.lora.modules_to_save"),
            fix="name modules of the model, such as embed_tokens or lm_head",
        )
    # A trained copy of a tied embedding has to stay tied to the head, or one of the two is lost when saved.
    tied = bool(getattr(model.config, "tie_word_embeddings", False) and lora.modules_to_save)
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", ensure_weight_tying=tied, **options))
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"the adapter does not fit the model: {str(error).splitlines()[0]}", "model.policy.lora"),
            fix=f"the model's linear layers are {', '.join(names)}",
        ) from None


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
    stored = set(json.loads(read_header(weights))) - {"__metadata__"}
    policy = loaded(partial(PeftModel.from_pretrained, model), str(folder), is_trainable=True)
    wanted = set(get_peft_model_state_dict(policy))
    # peft stores a tied head under its plain name, and loads it back there.
    strange = wanted - stored | stored - wanted - set(policy.state_dict())
    if strange:
        first = sorted(strange)[0]
        raise UserError(
            ExitCode.MODEL,
            Problem(f"{len(strange)} adapter weights do not match the model, first: {first}", str(weights)),
            fix="use the adapter with the base model that it was trained on",
        )
    return policy


def without_dropout(model: nn.Module) -> int:
    """Set every dropout of a model to 0 and return how many were not.

    The model stays in train mode, which gradient checkpointing needs. Attention kernels read a plain attribute.
    """
    silenced = 0
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            module.p = 0.0
            silenced += 1
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                silenced += 1
    return silenced


def save_model(model: Any, tokenizer: Any, folder: Path, base_path: str) -> None:
    """Write a model or the adapter that was trained in the Hugging Face layout, with its tokenizer and template."""
    if hasattr(model, "peft_config"):
        base, config = Path(base_path), model.peft_config[TRAINED]
        config.base_model_name_or_path = str(base.resolve()) if base.is_dir() else base_path
        model.save_pretrained(folder, safe_serialization=True, selected_adapters=[TRAINED])
        if base.is_dir():
            (folder / ORIGIN_FILE).write_text(
                json.dumps({"base_digest": weights_digest(base)}) + "\n", encoding="utf-8"
            )
        (folder / "README.md").unlink(missing_ok=True)  # peft's own, empty card
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
