"""An estimate of the memory that a run takes, from the model's configuration and before anything is loaded.

Weights, gradients and optimizer states are exact; activations follow a rule for Llama-like layers. For six runs of the
embedded model on a CPU (whole, LoRA, 4 bits; fp32 and bf16; 256 to 2048 tokens) the total was 0.99 to 1.36 times the
largest resident memory of the process. On a GPU nothing was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from dpo_lightning.logps import CHUNK
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.folder_checks import call_loader, missing_weights_error, read_header
from dpo_lightning.models.folder_files import check_description, is_adapter_folder
from dpo_lightning.models.lora import attach_lora

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per value."""
BLOCK, DOUBLE_BLOCK = 64, 256
"""Weights per scale in 4 bits, and scales per second-level scale with `double_quant`."""

STATES = {"sgd": 0, "adamw": 2, "adam": 2, "nadam": 2, "radam": 2, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
"""State values that an optimizer keeps per trained value."""

SMALL = 4096
"""Tensors with fewer values keep float32 states in the 8-bit optimizers of bitsandbytes."""

BUFFERS = 6
"""Number of logit-chunk-sized float32 buffers alive at the peak of a step."""

PROCESS_BYTES = 750 * 2**20
"""Python with its libraries before a model is loaded; the context of a GPU takes about as much."""


Held = Literal["", "copy", "adapter", "model"]
"""What a reference keeps in memory: nothing, a `copy` of the policy, of its `adapter`, or another `model`."""


class Part(NamedTuple):
    """A line of the estimate: its name, bytes, and an explanation."""

    name: str
    bytes: float
    note: str = ""


class Shapes(NamedTuple):
    """A model without its values.

    Attributes:
        layers: for each tensor of the base, its number of values, and the outputs of a layer that can be quantized
            (else 0).
        trained: number of values of each trained tensor.
        adapted: inputs of each adapted layer, summed over the model.
        config: the text part of its configuration.
    """

    layers: list[tuple[int, int]]
    trained: list[int]
    adapted: int
    config: Any

    @property
    def values(self) -> int:
        """Number of values of the base."""
        return sum(values for values, _ in self.layers)


def read_architecture(model: CausalLM) -> Any:
    """Load the configuration of a model, also from a folder with a config.json and no weights."""
    from transformers import AutoConfig

    folder = Path(model.path)
    if not folder.is_dir() or is_adapter_folder(folder) or any((*folder.glob("*.safetensors*"), *folder.glob("*.bin"))):
        return model.config()
    check_description(folder, "config.json")
    return call_loader(AutoConfig.from_pretrained, model.path, trust_remote_code=False)


def shapes_of(model: CausalLM) -> Shapes:
    """Build a model and its adapter on the meta device, and return their shapes."""
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = read_architecture(model)
    with torch.device("meta"):
        build = AutoModelForCausalLM.from_config
        built: Any = call_loader(lambda _: build(config, trust_remote_code=False), model.path)
        head = built.get_output_embeddings()
        linear = {
            id(part.weight): part.weight.shape[1 if isinstance(part, Conv1D) else 0]
            for part in built.modules()
            if isinstance(part, (nn.Linear, Conv1D)) and part is not head
        }
        layers = [(value.numel(), linear.get(id(value), 0)) for value in built.parameters()]
        folder = model.adapter_folder() if is_adapter_folder(model.path) else None
        if folder is not None:
            trained, adapted = read_adapter_shapes(folder)
            return Shapes(layers, trained, adapted, config.get_text_config())
        trained, adapted = [value.numel() for value in built.parameters()], 0
        if model.lora is not None:
            # The initialization does not change shapes, and may need values, which meta tensors lack.
            built = attach_lora(built, replace(model.lora, init_lora_weights=True))
            trained = [value.numel() for value in built.parameters() if value.requires_grad]
            named = built.named_modules()
            adapted = sum(part.in_features for name, part in named if name.endswith("lora_A.default"))
    return Shapes(layers, trained, adapted, config.get_text_config())


def read_adapter_shapes(folder: Path) -> tuple[list[int], int]:
    """Read the number of values of each tensor of an adapter folder, and the summed inputs of its layers."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise missing_weights_error(folder, weights.name)
    entries = {name: entry["shape"] for name, entry in json.loads(read_header(weights)).items() if "shape" in entry}
    return [math.prod(shape) for shape in entries.values()], sum(s[1] for n, s in entries.items() if "lora_A" in n)


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a run, computed from the options that affect it."""

    model: CausalLM
    """The policy."""

    precision: str
    """As in `--trainer.precision`."""

    optimizer: str = "AdamW"
    """Name of the optimizer's class."""

    reference: Held = ""
    """What the reference keeps in memory."""

    other: str | None = None
    """Path of the reference model, for `model`."""

    sequences: int = 8
    """Sequences per micro-batch: two for a pair."""

    max_length: int = 1024
    """Largest number of tokens per sequence."""

    max_tokens: int | None = None
    """Tokens per micro-batch, instead of a number of sequences."""

    @cached_property
    def shapes(self) -> Shapes:
        """Shapes of the policy, computed once."""
        return shapes_of(self.model)

    @property
    def tokens(self) -> int:
        """Number of tokens of a micro-batch of the longest rows."""
        return self.max_tokens or self.sequences * self.max_length

    @property
    def half(self) -> bool:
        """Whether matrix products are computed in 16 bits."""
        return self.precision.startswith(("bf16", "16"))

    def width(self, dtype: str) -> int:
        """Return the bytes of a value stored as `dtype`; with true half precision, all floating-point values."""
        return {"bf16-true": 2, "16-true": 2, "64-true": 8, "64": 8}.get(self.precision, WIDTHS[dtype])

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained, and not the whole model."""
        return self.model.lora is not None or sum(self.shapes.trained) != self.shapes.values

    def weights(self, shapes: Shapes) -> float:
        """Return the bytes of a base's weights, quantized if the policy is."""
        quantization, width = self.model.quantization, self.width(self.model.dtype)
        total = 0.0
        for values, outputs in shapes.layers:
            if not quantization or not outputs:
                total += values * width
            elif quantization.bits == 8:
                total += values + 4 * outputs
            else:
                # A float32 scale per block; with `double_quant`, scales of 8 bits and a second level in float32.
                scales = math.ceil(values / BLOCK)
                nested = scales + 4 * math.ceil(scales / DOUBLE_BLOCK) + 4 * DOUBLE_BLOCK + 4
                tables = 4 * 16
                total += math.ceil(values / 2) + tables + (nested if quantization.double_quant else 4 * scales)
        return total

    def trained_value_bytes(self) -> int:
        """Return the bytes of a trained value: adapters are float32 whatever the base is."""
        return self.width("float32" if self.adapts else self.model.dtype)

    def gradients(self) -> float:
        """Return the bytes of the gradients of all trained values."""
        return sum(self.shapes.trained) * self.trained_value_bytes()

    def states(self) -> float:
        """Return the bytes of the optimizer's states; an unknown class counts as AdamW."""
        name = self.optimizer.rpartition(".")[2].lower().removeprefix("paged")
        count, eight = STATES.get(name.removesuffix("8bit").removesuffix("32bit"), 2), name.endswith("8bit")
        if name.startswith("sgd") and eight:
            count = 1
        total = 0.0
        for values in self.shapes.trained:
            small = not eight or values < SMALL
            wide, quantized = values * self.trained_value_bytes(), values + 4 * math.ceil(values / DOUBLE_BLOCK)
            total += count * (wide if small else quantized)
        return total

    def reference_weights(self) -> float:
        """Return the bytes of the weights that the reference keeps."""
        if self.reference == "model" and self.other:
            return self.weights(shapes_of(replace(self.model, path=self.other, lora=None)))
        adapter = sum(self.shapes.trained) * self.trained_value_bytes() if self.adapts else 0
        return {"copy": self.weights(self.shapes) + adapter, "adapter": adapter}.get(self.reference, 0)

    def layer_activations(self) -> float:
        """Return the bytes that one decoder layer keeps of a micro-batch for its backward pass."""
        config, tokens = self.shapes.config, self.tokens
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        inner *= getattr(config, "num_experts_per_tok", None) or 1
        size = getattr(config, "head_dim", None) or hidden // heads
        keys = (getattr(config, "num_key_value_heads", None) or heads) * size
        stream = self.width("float32")  # norms and the residual stream
        product = 2 if self.half else stream
        # Kept per token: input and output of two norms; queries, keys and values before and after rotation, and the
        # attention output; in the MLP the gate, its activation, the up projection and their product.
        kept = 4 * stream * hidden + product * (2 * heads * size + 2 * keys + heads * size) + 4 * product * inner
        if self.half and not self.adapts:  # autocast gives every linear layer a half-precision copy of its input
            kept += product * 5 * hidden
        if self.adapts:  # frozen layers keep no input, adapters keep theirs
            kept += product * self.shapes.adapted / config.num_hidden_layers if self.half else 0
        if self.model.attention == "eager":
            kept += (stream + product) * heads * self.max_length
        return tokens * kept

    def copies(self) -> float:
        """Return the bytes of weights converted to the data type of the computation."""
        layers = [values for values, outputs in self.shapes.layers if outputs]
        quantized = self.model.quantization is not None
        if not quantized and not (self.half and self.width(self.model.dtype) == 4):
            return 0
        width = 2 if self.half else 4
        # Dequantized or recomputed layers are converted one at a time; otherwise autocast caches all copies.
        one_by_one = quantized or (self.model.gradient_checkpointing and self.adapts)
        return width * (2 * max(layers, default=0) if one_by_one else sum(layers))

    def activations(self) -> float:
        """Return the bytes kept between forward and backward pass, at their peak."""
        config = self.shapes.config
        ends = 3 * self.tokens * config.hidden_size * self.width("float32")
        if not self.model.gradient_checkpointing:
            return ends + config.num_hidden_layers * self.layer_activations()
        borders = config.num_hidden_layers * self.tokens * config.hidden_size * self.width("float32")
        return (
            ends + borders + 2 * self.layer_activations()
        )  # the layer that is recomputed, and the gradients of its activations

    def logits(self) -> float:
        """Return the bytes of the buffers for a chunk of logits."""
        return BUFFERS * 4 * min(CHUNK, self.tokens * self.shapes.config.vocab_size)

    def parts(self) -> Iterator[Part]:
        """Iterate over the lines of the estimate."""
        shapes, trained = self.shapes, sum(self.shapes.trained)
        kind = self.model.quantization or self.model.dtype
        held = {"": "keeps no weights", "copy": "a frozen copy", "adapter": "the adapter only"}
        yield Part("weights", self.weights(shapes), f"{format_count(shapes.values)} values, {kind}")
        if self.adapts:
            yield Part("adapter", trained * self.trained_value_bytes(), f"{format_count(trained)} values")
        yield Part("gradients", self.gradients(), f"{format_count(trained)} trained values")
        yield Part("optimizer", self.states(), self.optimizer.rpartition(".")[2])
        yield Part("reference", self.reference_weights(), held.get(self.reference, str(self.other)))
        again = ", layers recomputed" if self.model.gradient_checkpointing else ""
        yield Part("activations", self.activations(), f"up to {self.tokens} tokens{again}")
        yield Part("copies", self.copies(), "weights in the precision of the computation")
        yield Part("logits", self.logits(), "one chunk")
        yield Part("program", PROCESS_BYTES, "Python with libraries, or the context of a GPU")

    def total(self) -> float:
        """Return the bytes of all lines together."""
        return sum(part.bytes for part in self.parts())


def format_count(count: int) -> str:
    """Format a number of values with a unit, such as `134.5 M`."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return str(count)
