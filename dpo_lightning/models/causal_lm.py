"""`CausalLM`: a causal language model from a folder or a hub, whole, with a new LoRA, or with a trained adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dpo_lightning.activity import activity
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.finite_weights import check_finite
from dpo_lightning.models.folder_checks import (
    adapter_base,
    call_loader,
    check_folder,
    check_hub_model,
    check_loaded,
    count_values,
)
from dpo_lightning.models.folder_files import is_adapter_folder, list_values, read_json
from dpo_lightning.models.forward_checks import OTHER_MODEL, check_model
from dpo_lightning.models.lora import ORIGIN_FILE, Lora, attach_lora, load_adapter
from dpo_lightning.models.missing_folders import KEY
from dpo_lightning.models.patterns import check_tokenizer_file
from dpo_lightning.models.quantization import Quantization, loader_options, set_compute_dtype, stabilize_layers
from dpo_lightning.models.router_loss import check_coefficient
from dpo_lightning.models.saving import save_model
from dpo_lightning.models.size import check_size

NAMED_TOKENS = ("eos_token", "bos_token", "pad_token")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class CausalLM:
    """The policy: which weights, in which precision, with which adapter."""

    path: str
    """A model folder, an adapter folder (its adapter is trained further), or a hub id."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the stored weights, `float16` for frozen ones only; the computation has `--trainer.precision`."""

    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. `auto` computes shared prefixes once if the model allows it; others use padded rows."""

    lora: Lora | None = None
    """Train a new adapter instead of all weights."""

    quantization: Quantization | None = None
    """Hold the frozen base below an adapter in 4 or 8 bits, and a reference model likewise."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, a fraction of the memory."""

    compile: bool = False
    """Compile the decoder layers with `torch.compile`: 10 to 30 s at the start, then faster, and less memory."""

    router_aux_loss_coef: float | None = None
    """Coefficient of the load-balancing loss of experts; 0 is none. Left out, the model's config decides."""

    def build(self) -> nn.Module:
        """Load the weights and attach the adapter.

        Raises:
            UserError: the folder is not a complete model of this kind, or its adapter belongs to another base.
        """
        with activity(f"loading {self.path}"):
            return self._load()

    def _load(self) -> nn.Module:
        adapter = self.adapter_folder()
        model = load_base(self.base_path(), self.dtype, self.attention, self.quantization)
        if adapter is not None:
            if self.lora is not None:
                logger.info("note: the policy is a trained adapter and is trained further: `lora` is ignored")
            model = load_adapter(model, adapter, Path(self.base_path()))
        elif self.lora is not None:
            model = attach_lora(model, self.lora)
        # Not before: the checks of the loaded model compare float32 products.
        if self.quantization is not None:
            set_compute_dtype(model, self.quantization)
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def __post_init__(self) -> None:
        check_coefficient(self.router_aux_loss_coef)
        if self.quantization is None:
            return
        for what, where, bad, fix in (
            (
                f"dtype={self.dtype}: with quantization, all other weights have to be float32",
                "dtype",
                self.dtype != "float32",
                "leave dtype out; --trainer.precision sets the precision of the computation",
            ),
            (
                f"{self.lora and self.lora.init_lora_weights} needs unquantized base weights",
                "lora.init_lora_weights",
                self.lora is not None and self.lora.needs_full_weights,
                "--model.policy.lora.init_lora_weights true, or leave --model.policy.quantization out",
            ),
        ):
            if bad:
                raise UserError(ExitCode.CONFIG, Problem(what, f"model.policy.{where}"), fix=fix)

    def under(self, precision: str) -> CausalLM:
        """Return a copy in which what depends on `--trainer.precision` is resolved."""
        return self if self.quantization is None else replace(self, quantization=self.quantization.under(precision))

    @property
    def exact(self) -> bool:
        """Whether the base weights compute in float32: neither quantized to a half type nor stored in one."""
        return self.dtype == "float32" and (self.quantization is None or self.quantization.exact)

    def adapter_folder(self) -> Path | None:
        """Return the folder if it holds an adapter, else None."""
        folder = check_folder(self.path)
        return folder if folder is not None and is_adapter_folder(folder) else None

    def base_path(self) -> str:
        """Return the path or hub id of the whole model, which is the base of an adapter."""
        adapter = self.adapter_folder()
        return self.path if adapter is None else adapter_base(adapter)

    def count_trained_values(self) -> int:
        """Count the weights that full fine-tuning trains; 0 with an adapter, and for a model that is not on disk."""
        folder = check_folder(self.path)
        if folder is None or self.lora is not None or self.adapter_folder() is not None:
            return 0
        return count_values(folder)

    def config(self) -> Any:
        """Return the transformers configuration of the whole model."""
        return load_config(self.base_path())

    def tokenizer(self) -> Any:
        """Load the tokenizer, from the adapter's folder if it has one.

        Raises:
            UserError: there is no tokenizer, it has no EOS token, or it has ids without an embedding in the model.
        """
        from transformers import AutoTokenizer

        adapter = self.adapter_folder()
        own = adapter is not None and (adapter / "tokenizer_config.json").exists()
        path = self.path if own else self.base_path()
        rows = self.config().get_text_config().vocab_size
        check_tokenizer_file(Path(path) / "tokenizer.json")
        tokenizer = call_loader(AutoTokenizer.from_pretrained, path, trust_remote_code=False)
        report_unknown_class(path)
        check_known(tokenizer, path)  # before ids are compared: a missing special token gets the next free id
        last = max(tokenizer.get_vocab().values(), default=-1)  # ids may have gaps, so counting them is not enough
        if last >= rows:
            raise UserError(
                ExitCode.MODEL,
                Problem(f"the tokenizer has ids up to {last}, the model has {rows} embeddings", KEY, self.path),
                fix="resize the model's embeddings and save it, or use the tokenizer that belongs to it",
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                ExitCode.MODEL,
                Problem("the tokenizer has no EOS token, which ends an answer", KEY, self.path),
                fix="set eos_token in the folder's tokenizer_config.json",
            )
        return tokenizer

    def end_ids(self) -> frozenset[int]:
        """Return the ids that end an answer according to the model's generation config."""
        from transformers import GenerationConfig

        try:
            ids = GenerationConfig.from_pretrained(self.base_path()).eos_token_id
        except OSError:
            return frozenset()
        except (ValueError, TypeError, AttributeError) as error:
            what = Problem(f"generation_config.json cannot be used: {error}", KEY, self.base_path())
            raise UserError(ExitCode.MODEL, what, fix="correct the file, or remove it") from None
        several = ids if isinstance(ids, list) else [] if ids is None else [ids]
        rows = self.config().get_text_config().vocab_size
        if not all(type(one) is int and 0 <= one < rows for one in several):
            raise UserError(
                ExitCode.MODEL,
                Problem("eos_token_id is not a token id", f"{self.base_path()}/generation_config.json", str(ids)),
                fix="write an id of the vocabulary, or a list of them",
            )
        return frozenset(several)


def report_unknown_class(path: str) -> None:
    """Log that transformers does not know the class of a tokenizer, and uses its file without that class's rules."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    file = Path(path, TOKENIZER_FILES[1])
    name = read_json(file).get("tokenizer_class") if file.is_file() else None
    if isinstance(name, str) and not any(map(tokenizer_class_from_name, (name, f"{name}Fast"))):
        what = f"names the class {name}, which transformers does not know: tokenizer.json alone is used"
        logger.info(f"note: {file} {what}")


def check_known(tokenizer: Any, path: str) -> None:
    """Refuse an EOS, BOS or padding token that the tokenizer's files lack: transformers would assign a new id to it.

    Raises:
        UserError: 67, with the tokens.
    """
    from transformers.utils import cached_file

    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False) if tokenizer.is_fast else {}
    named = {name: getattr(tokenizer, name) for name in NAMED_TOKENS}
    missing = {name: token for name, token in named.items() if token and token not in vocabulary}
    files = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in TOKENIZER_FILES]
    present = [Path(file) for file in files if file is not None]
    if not missing or len(present) < len(files):  # a format that transformers converts on loading
        return
    content, config = map(read_json, present)
    added = [*list_values(content.get("added_tokens")), *list_values(config.get("added_tokens_decoder"))]
    known = {token.get("content") for token in added if isinstance(token, dict)}
    problems = [
        Problem(f"{name} {token} is not in the tokenizer's vocabulary, so its embedding is untrained", KEY, path)
        for name, token in missing.items()
        if token not in known
        and (name == "eos_token" or config.get(name))  # others may be defaults of the tokenizer's class
    ]
    if problems:
        fix = "write a token of the vocabulary into the folder's tokenizer_config.json"
        raise UserError(ExitCode.MODEL, problems, fix=fix)


def load_config(path: str) -> Any:
    """Load the configuration of a causal language model.

    Raises:
        UserError: the model is of another kind, such as an encoder-decoder, or its files name code or other files.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if check_folder(path) is None:
        check_hub_model(path)
    config = call_loader(AutoConfig.from_pretrained, path, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = " but an encoder-decoder" if config.is_encoder_decoder else ""
        what = f"the model cannot be loaded: {config.model_type} is not a causal language model{kind}"
        raise UserError(ExitCode.MODEL, Problem(what, KEY, path), fix=OTHER_MODEL)
    call_loader(lambda _: config.get_text_config(), path)  # raises if there are several, as in MusicGen
    return config


def load_base(path: str, dtype: str, attention: str, quantization: Quantization | None = None) -> Any:
    """Load a whole model and check it.

    Raises:
        UserError: weights are missing, unknown or of another shape, or `check_model` refuses the model.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(path)
    check_size(path, config)
    named = getattr(config, "_attn_implementation", None)
    if named is not None:
        logger.info(
            f"note: attention {named} in the config.json of {path} is ignored; --model.policy.attention sets it"
        )
    quantized = {} if quantization is None else loader_options(quantization)
    model, info = call_loader(
        AutoModelForCausalLM.from_pretrained,
        path,
        config=config,  # passed, so that the attention set here overrides the file's in all sub-configs
        dtype=dtype,
        attn_implementation=None if attention == "auto" else attention,
        experts_implementation=None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, with their names
        **quantized,
    )
    check_loaded(info, path, KEY, "use a folder whose config.json matches its weights (copy it again)")
    check_finite(model, path, KEY)
    if quantization is not None:
        stabilize_layers(model)
        model.requires_grad_(False)
    check_model(model, path)
    reason = install(model) if attention == "auto" else ""
    if reason:
        logger.info(f"layout: padded rows ({reason})")
    return model


__all__ = ["ORIGIN_FILE", "CausalLM", "Lora", "Quantization", "load_base", "save_model"]
