"""Causal language models from a folder or a hub: whole, with a new LoRA, or with an adapter that was trained before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dpo_lightning.models.lora import ORIGIN_FILE, Lora, attach_lora, load_adapter, save_adapter
from dpo_lightning.log import logger
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.folder_files import read_json
from dpo_lightning.models.attention import install
from dpo_lightning.models.checks import OTHER_MODEL, check_model
from dpo_lightning.models.folder import (
    KEY,
    adapter_base,
    check_folder,
    check_hub_model,
    count_values,
    loaded,
)
from dpo_lightning.models.size import check_size
from dpo_lightning.models.patterns import check_tokenizer_file
from dpo_lightning.models.quantization import Quantization, compute_in, loading, steady
from dpo_lightning.models.transformers4 import add_older_names

NAMED_TOKENS = ("eos_token", "bos_token", "pad_token")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


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

    quantization: Quantization | None = None
    """Hold the frozen base below an adapter in 4 or 8 bits, and a live reference likewise."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third slower, a fraction of the memory."""

    compile: bool = False
    """Compile the decoder layers with `torch.compile`: 10 to 30 s at the start, then faster, and less memory."""

    router_aux_loss_coef: float | None = None
    """Of experts: what the load-balancing loss is multiplied by. Left out, the model's config tells; 0 is none."""

    def build(self) -> nn.Module:
        """Load the weights and attach the adapter.

        Raises:
            UserError: the folder is not a whole model of this kind, or its adapter belongs to another base.
        """
        adapter = self.adapter_folder()
        model = load_base(self.base_path(), self.dtype, self.attention, self.quantization)
        if adapter is not None:
            if self.lora is not None:
                logger.info("note: the policy is an adapter folder: its own adapter is trained further, `lora` is not used")
            model = load_adapter(model, adapter, Path(self.base_path()))
        elif self.lora is not None:
            model = attach_lora(model, self.lora)
        if self.quantization is not None:
            compute_in(model, self.quantization)
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def __post_init__(self) -> None:
        """Refuse what quantized weights do not go with.

        Raises:
            UserError: the rest of the model would not be in float32, or the adapter needs whole weights to begin.
        """
        if self.quantization is None:
            return
        for what, where, bad, fix in (
            (
                f"dtype={self.dtype}: what is not quantized stays in float32, which norms and small steps need",
                "dtype",
                self.dtype != "float32",
                "leave dtype out; --trainer.precision says what is computed in",
            ),
            (
                f"{self.lora and self.lora.init_lora_weights} begins with whole weights, which are quantized here",
                "lora.init_lora_weights",
                self.lora is not None and self.lora.needs_whole,
                "--model.policy.lora.init_lora_weights true, or leave --model.policy.quantization out",
            ),
        ):
            if bad:
                raise UserError(ExitCode.CONFIG, Problem(what, f"model.policy.{where}"), fix=fix)

    def under(self, precision: str) -> CausalLM:
        """The same, with what follows from `--trainer.precision` settled."""
        return self if self.quantization is None else replace(self, quantization=self.quantization.under(precision))

    @property
    def exact(self) -> bool:
        """Whether the weights' own part of a product is that of float32."""
        return self.dtype == "float32" and (self.quantization is None or self.quantization.exact)

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
        return load_config(self.base_path())

    def tokenizer(self) -> Any:
        """The tokenizer, taken from the adapter's folder where that has one.

        Raises:
            UserError: there is none, or it has ids that the model has no embedding for.
        """
        from transformers import AutoTokenizer

        adapter = self.adapter_folder()
        own = adapter is not None and (adapter / "tokenizer_config.json").exists()
        path = self.path if own else self.base_path()
        rows = self.config().get_text_config().vocab_size
        check_tokenizer_file(Path(path) / "tokenizer.json")
        tokenizer = loaded(AutoTokenizer.from_pretrained, path, trust_remote_code=False)
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
        check_known(tokenizer, path)
        return tokenizer

    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer according to the model's generation config."""
        from transformers import GenerationConfig

        try:
            ids = GenerationConfig.from_pretrained(self.base_path()).eos_token_id
        except OSError:
            return frozenset()
        except (ValueError, TypeError, AttributeError) as error:
            what = Problem(f"generation_config.json cannot be used: {error}", KEY, self.base_path())
            raise UserError(ExitCode.MODEL, what, fix="mend it, or remove it") from None
        several = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(one) is int for one in several):
            raise UserError(
                ExitCode.MODEL,
                Problem("eos_token_id is no id of a token", f"{self.base_path()}/generation_config.json", str(ids)),
                fix="write a number, or a list of numbers",
            )
        return frozenset(several)


def check_known(tokenizer: Any, path: str) -> None:
    """Refuse an EOS, BOS or padding token that the tokenizer's files lack: transformers makes up an id for it.

    Raises:
        UserError: 67, with the tokens.
    """
    from transformers.utils import cached_file

    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False) if tokenizer.is_fast else {}
    named = {name: getattr(tokenizer, name) for name in NAMED_TOKENS}
    strange = {name: token for name, token in named.items() if token and token not in vocabulary}
    files = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in TOKENIZER_FILES]
    present = [Path(file) for file in files if file is not None]
    if not strange or len(present) < len(files):  # another format, which is converted whenever it is loaded
        return
    content, config = map(read_json, present)
    added = [*content.get("added_tokens", ()), *config.get("added_tokens_decoder", {}).values()]
    known = {token.get("content") for token in added if isinstance(token, dict)}
    problems = [
        Problem(f"{name} {token} is not in the tokenizer's vocabulary: an id without a trained embedding", KEY, path)
        for name, token in strange.items()
        if token not in known and (name == "eos_token" or config.get(name))  # others may be a class's defaults
    ]
    if problems:
        fix = "write a token of the vocabulary into the folder's tokenizer_config.json"
        raise UserError(ExitCode.MODEL, problems, fix=fix)


def load_config(path: str) -> Any:
    """The configuration of a model that can be loaded as a causal language model.

    Raises:
        UserError: it is of another kind, such as an encoder with a decoder, or names code or other files.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if check_folder(path) is None:
        check_hub_model(path)
    config = loaded(AutoConfig.from_pretrained, path, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "another kind of model"
        what = f"the model cannot be loaded: {config.model_type} is {kind} and not a causal language model"
        raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)
    loaded(lambda _: config.get_text_config(), path)  # raises where there are several, as in MusicGen
    return config


def load_base(path: str, dtype: str, attention: str, quantization: Quantization | None = None) -> Any:
    """A whole model whose every weight came from its files."""
    from transformers import AutoModelForCausalLM

    config = load_config(path)
    check_size(path, config)
    named = getattr(config, "_attn_implementation", None)
    if named is not None:
        logger.info(f"note: attention {named} in the config.json of {path} is not used; --model.policy.attention chooses")
    quantized = {} if quantization is None else loading(quantization)
    model, info = loaded(
        AutoModelForCausalLM.from_pretrained,
        path,
        config=config,  # read before, so that the kernels given here replace those that it names, in every part of it
        dtype=dtype,
        attn_implementation=None if attention == "auto" else attention,
        experts_implementation=None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, with their names
        **quantized,
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
    if quantization is not None:
        steady(model)
        model.requires_grad_(False)
    check_model(model, path)
    reason = install(model) if attention == "auto" else ""
    if reason:
        logger.info(f"layout: padded rows ({reason})")
    return model


def save_model(model: Any, tokenizer: Any, folder: Path, base_path: str) -> None:
    """Write a model or the adapter that was trained in the Hugging Face layout, with its tokenizer and template."""
    if hasattr(model, "peft_config"):
        save_adapter(model, folder, base_path)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_older_names(folder, tokenizer)


__all__ = ["ORIGIN_FILE", "CausalLM", "Lora", "Quantization", "load_base", "save_model"]
