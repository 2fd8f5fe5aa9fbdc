"""What a run will hold in memory, told from a model's configuration before anything of it is loaded.

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
from dpo_lightning.models.folder import loaded, no_weights, read_header
from dpo_lightning.models.folder_files import check_description
from dpo_lightning.models.lora import attach_lora

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK, DOUBLE_BLOCK = 64, 256
"""Weights that share a scale in 4 bits, and scales that share one of their own."""

STATES = {"sgd": 0, "adamw": 2, "adam": 2, "nadam": 2, "radam": 2, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
"""Numbers that an optimizer keeps for a trained value."""

SMALL = 4096
"""Values of a tensor below which bitsandbytes keeps float32 in an optimizer of 8 bits."""

BUFFERS = 6
"""Chunks of float32 logits that are there at once: logits, their probabilities, gradients, and those of a half."""

PROGRAM = 750 * 2**20
"""Python with its libraries, before anything is loaded; a GPU's own context is about as large."""


Held = Literal["", "copy", "adapter", "model"]


class Part(NamedTuple):
    """A line of the estimate."""

    name: str
    bytes: float
    note: str = ""


class Shapes(NamedTuple):
    """A model without its values.

    Attributes:
        layers: for each tensor of the base, its values, and the outputs of a layer that can be quantized (else 0).
        trained: values of each tensor that is trained.
        adapted: inputs of each adapted layer, added up over the model.
        config: the text part of its configuration.
    """

    layers: list[tuple[int, int]]
    trained: list[int]
    adapted: int
    config: Any

    @property
    def values(self) -> int:
        """Values of the base."""
        return sum(values for values, _ in self.layers)


def is_adapter(model: CausalLM) -> bool:
    """Whether the folder holds an adapter; unlike a model to be loaded, it need not be whole."""
    return Path(model.path, "adapter_config.json").exists()


def architecture(model: CausalLM) -> Any:
    """The configuration of a whole model, also of a folder with a config.json and no weights."""
    from transformers import AutoConfig

    folder = Path(model.path)
    if not folder.is_dir() or is_adapter(model) or any((*folder.glob("*.safetensors*"), *folder.glob("*.bin"))):
        return model.config()
    check_description(folder, "config.json")
    return loaded(AutoConfig.from_pretrained, model.path, trust_remote_code=False)


def shapes_of(model: CausalLM) -> Shapes:
    """Build a model whose tensors have shapes and no values, with its adapter.

    That a folder's files hold exactly these values is checked when they are loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = architecture(model)
    with torch.device("meta"):
        built: Any = loaded(lambda _: AutoModelForCausalLM.from_config(config), model.path)
        head = built.get_output_embeddings()
        linear = {
            id(part.weight): part.weight.shape[1 if isinstance(part, Conv1D) else 0]
            for part in built.modules()
            if isinstance(part, (nn.Linear, Conv1D)) and part is not head
        }
        layers = [(value.numel(), linear.get(id(value), 0)) for value in built.parameters()]
        folder = model.adapter_folder() if is_adapter(model) else None
        if folder is not None:
            trained, adapted = stored_adapter(folder)
            return Shapes(layers, trained, adapted, config.get_text_config())
        trained = [value.numel() for value in built.parameters()]
        adapted = 0
        if model.lora is not None:
            # How it begins changes no shape, and would need values.
            built = attach_lora(built, replace(model.lora, init_lora_weights=True))
            trained = [value.numel() for value in built.parameters() if value.requires_grad]
            named = built.named_modules()
            adapted = sum(part.in_features for name, part in named if name.endswith("lora_A.default"))
    return Shapes(layers, trained, adapted, config.get_text_config())


def stored_adapter(folder: Path) -> tuple[list[int], int]:
    """Values of each tensor of an adapter folder, and the inputs of its layers added up."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise no_weights(folder, weights.name)
    entries = {name: entry["shape"] for name, entry in json.loads(read_header(weights)).items() if "shape" in entry}
    return [math.prod(shape) for shape in entries.values()], sum(s[1] for n, s in entries.items() if "lora_A" in n)


@dataclass(frozen=True)
class Run:
    """What decides how much a run holds."""

    model: CausalLM
    """The policy."""

    precision: str
    """As `--trainer.precision` has it."""

    optimizer: str = "AdamW"
    """Name of its class."""

    reference: Held = ""
    """`copy` of the policy or of its `adapter`'s start, `model` that was named; nothing else is held."""

    other: str | None = None
    """The path of the named model."""

    sequences: int = 8
    """Sequences of a micro-batch: two for a pair."""

    max_length: int = 1024
    """Tokens of each at the most."""

    max_tokens: int | None = None
    """Tokens of a micro-batch in place of a number of sequences."""

    @cached_property
    def shapes(self) -> Shapes:
        """Of the policy."""
        return shapes_of(self.model)

    @property
    def tokens(self) -> int:
        """Of a micro-batch of the longest rows."""
        return self.max_tokens or self.sequences * self.max_length

    @property
    def half(self) -> bool:
        """Whether products are computed in 16 bits."""
        return self.precision.startswith(("bf16", "16"))

    def width(self, dtype: str) -> int:
        """Bytes of a number that is held as `dtype`; true half precision turns all that is no integer."""
        return {"bf16-true": 2, "16-true": 2, "64-true": 8, "64": 8}.get(self.precision, WIDTHS[dtype])

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained."""
        return self.model.lora is not None or sum(self.shapes.trained) != self.shapes.values

    def weights(self, shapes: Shapes) -> float:
        """Bytes of a base's weights as they are held."""
        quantization, width = self.model.quantization, self.width(self.model.dtype)
        total = 0.0
        for values, outputs in shapes.layers:
            if not quantization or not outputs:
                total += values * width
            elif quantization.bits == 8:
                total += values + 4 * outputs
            else:
                scales = math.ceil(values / BLOCK)
                nested = scales + 4 * math.ceil(scales / DOUBLE_BLOCK) + 4 * DOUBLE_BLOCK + 4
                tables = 4 * 16
                total += math.ceil(values / 2) + tables + (nested if quantization.double_quant else 4 * scales)
        return total

    def trained_width(self) -> int:
        """Bytes of a trained value: adapters are float32 whatever the base is."""
        return self.width("float32" if self.adapts else self.model.dtype)

    def gradients(self) -> float:
        """Bytes of all gradients."""
        return sum(self.shapes.trained) * self.trained_width()

    def states(self) -> float:
        """Bytes of the optimizer's states; a class that is not known here counts as AdamW."""
        name = self.optimizer.rpartition(".")[2].lower().removeprefix("paged")
        count, eight = STATES.get(name.removesuffix("8bit").removesuffix("32bit"), 2), name.endswith("8bit")
        if name.startswith("sgd") and eight:
            count = 1
        total = 0.0
        for values in self.shapes.trained:
            small = not eight or values < SMALL
            total += count * (values * self.trained_width() if small else values + 4 * math.ceil(values / DOUBLE_BLOCK))
        return total

    def held_reference(self) -> float:
        """Bytes of a second model."""
        if self.reference == "model" and self.other:
            return self.weights(shapes_of(replace(self.model, path=self.other, lora=None)))
        adapter = sum(self.shapes.trained) * self.trained_width() if self.adapts else 0
        return {"copy": self.weights(self.shapes) + adapter, "adapter": adapter}.get(self.reference, 0)

    def layer_activations(self) -> float:
        """Bytes that one decoder layer keeps of a micro-batch for its backward pass."""
        config, tokens = self.shapes.config, self.tokens
        hidden, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        inner *= getattr(config, "num_experts_per_tok", None) or 1
        size = getattr(config, "head_dim", None) or hidden // heads
        keys = (getattr(config, "num_key_value_heads", None) or heads) * size
        stream = self.width("float32")  # what norms compute, and what is added up
        product = 2 if self.half else stream
        # Two norms keep what came in and what they made of it; queries, keys and values are kept before and after they
        # are turned, and the answer; the inner layer keeps its gate, what is made of it, its other half, their product.
        kept = 4 * stream * hidden + product * (2 * heads * size + 2 * keys + heads * size) + 4 * product * inner
        if self.half and not self.adapts:  # every linear layer keeps its own copy of its input in half precision
            kept += product * 5 * hidden
        if self.adapts:  # the frozen layers keep nothing, the adapters theirs
            kept += product * self.shapes.adapted / config.num_hidden_layers if self.half else 0
        if self.model.attention == "eager":
            kept += (stream + product) * heads * self.max_length
        return tokens * kept

    def copies(self) -> float:
        """Bytes of weights that are turned into what products are computed in."""
        layers = [values for values, outputs in self.shapes.layers if outputs]
        quantized = self.model.quantization is not None
        if not quantized and not (self.half and self.width(self.model.dtype) == 4):
            return 0
        width = 2 if self.half else 4
        one_by_one = quantized or (self.model.gradient_checkpointing and self.adapts)
        return width * (2 * max(layers, default=0) if one_by_one else sum(layers))

    def activations(self) -> float:
        """Bytes of what is kept between the forward and the backward pass, at its peak."""
        config = self.shapes.config
        ends = 3 * self.tokens * config.hidden_size * self.width("float32")
        if not self.model.gradient_checkpointing:
            return ends + config.num_hidden_layers * self.layer_activations()
        borders = config.num_hidden_layers * self.tokens * config.hidden_size * self.width("float32")
        return ends + borders + 2 * self.layer_activations()  # one layer again, and the gradients of what it keeps

    def logits(self) -> float:
        """Bytes of the chunks of logits that are there at once."""
        return BUFFERS * 4 * min(CHUNK, self.tokens * self.shapes.config.vocab_size)

    def parts(self) -> Iterator[Part]:
        """The estimate, line by line."""
        shapes, trained = self.shapes, sum(self.shapes.trained)
        kind = self.model.quantization or self.model.dtype
        held = {"": "none is held", "copy": "a frozen copy", "adapter": "of the adapter alone"}
        yield Part("weights", self.weights(shapes), f"{spoken(shapes.values)} values, {kind}")
        if self.adapts:
            yield Part("adapter", trained * self.trained_width(), f"{spoken(trained)} values")
        yield Part("gradients", self.gradients(), f"of {spoken(trained)} trained values")
        yield Part("optimizer", self.states(), self.optimizer.rpartition(".")[2])
        yield Part("reference", self.held_reference(), held.get(self.reference, str(self.other)))
        again = ", layers computed again" if self.model.gradient_checkpointing else ""
        yield Part("activations", self.activations(), f"of {self.tokens} tokens at the most{again}")
        yield Part("copies", self.copies(), "of weights, in what is computed in")
        yield Part("logits", self.logits(), "a chunk at a time")
        yield Part("program", PROGRAM, "Python and libraries, or the context of a GPU")

    def total(self) -> float:
        """Bytes in all."""
        return sum(part.bytes for part in self.parts())


def spoken(count: int) -> str:
    """A number of values as a person says it."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return str(count)
