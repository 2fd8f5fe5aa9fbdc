"""What the transformers that is imported makes of model folders. Usage: folder_reading.py RESULTS FOLDER ..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TEXTS = (" The answer is 46.", "don't\n\n\ttwo  spaces 1234", "안녕<|im_end|><tool>x", "<s>émigré")
MESSAGES = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]
GENERATION = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
"""Settings of generation, and what they are where transformers 5 says None."""


def read(folder: Path) -> dict[str, Any]:
    """A folder's token ids, renderings and settings, logits, and a greedy answer where each id has an embedding.

    A folder without a model gives the tokenizer's part.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {
        "ids": [tokenizer(text)["input_ids"] for text in TEXTS],
        "bare ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "names": sorted(tokenizer(TEXTS[0])),
        "special": {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")},
        "all special": sorted(tokenizer.all_special_tokens),
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length),
    }
    found["texts"] = [tokenizer.decode(ids, skip_special_tokens=skip) for ids in found["ids"] for skip in (False, True)]
    if tokenizer.chat_template:
        for prompt in (False, True):
            text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
            found[f"chat {prompt}"] = (text, tokenizer(text, add_special_tokens=False)["input_ids"])
    if not (folder / "config.json").exists():
        return found
    options = {"dtype": "auto", "attn_implementation": "eager", "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
    keys = [info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    dtype, vocab = str(model.dtype), model.config.get_text_config().vocab_size
    ids = torch.randint(1, vocab, (2, 24), generator=torch.manual_seed(0))
    with torch.no_grad():
        found["logits"] = model.eval().float()(input_ids=ids, use_cache=False).logits
        if max(found["ids"][0]) < vocab:
            given = tokenizer(TEXTS[0], return_tensors="pt")
            found["answer"] = model.generate(**given, max_new_tokens=4, do_sample=False).tolist()
    kept = GenerationConfig.from_pretrained(folder)
    settings = {
        name: default if getattr(kept, name) is None else getattr(kept, name) for name, default in GENERATION.items()
    }
    ends = {name: getattr(kept, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return found | {
        "other keys": sum(map(len, keys)),
        "dtype": dtype,
        "generation": settings | ends,
    }


def read_all(folders: list[str]) -> dict[str, Any]:
    """`read` of every folder, or the error that it ends with."""
    results: dict[str, Any] = {"version": transformers.__version__}
    for folder in folders:
        try:
            results[folder] = read(Path(folder))
        except Exception as error:
            results[folder] = {"error": f"{type(error).__name__}: {error}"}
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(read_all(sys.argv[2:]), sys.argv[1])
