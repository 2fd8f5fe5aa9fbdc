"""What moves a log-probability is in a digest, and a file that was computed with something else is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import short_runs, tiny_models
from support.precomputed import files, looked_up

from dpo_lightning.data.collate import Padded
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.references.precomputed import Precomputed
from dpo_lightning.references.provenance import model_digests, values_digest

pytestmark = pytest.mark.usefixtures("place")


def test_weights_have_one_digest_however_they_are_split(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5), "c": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "one.safetensors")
    for name, value in tensors.items():
        save_file({name: value}, tmp_path / f"part-{name}.safetensors")
    whole = values_digest([tmp_path / "one.safetensors"])
    assert values_digest(tmp_path.glob("part-*.safetensors")) == whole
    for name in tensors:  # one value of each
        other = {**tensors, name: tensors[name].clone()}
        other[name].view(-1)[-1] += 1
        save_file(other, tmp_path / "other.safetensors")
        assert values_digest([tmp_path / "other.safetensors"]) != whole


def change_weights(folder, options, where):
    other = tiny_models.make_llama()
    other.model.layers[1].mlp.down_proj.weight.data[3, 5] += 1e-3  # one value of all
    return tiny_models.save(where / "other", other, tiny_models.make_chat_tokenizer()), options


def change_template(folder, options, where):
    template = where / "template.jinja"
    template.write_text(tiny_models.CHATML.replace("helpful", "careful"))
    return folder, {"chat_template": str(template)}


def change_architecture(folder, options, where):
    other = tiny_models.make_llama(rms_norm_eps=1e-3)
    return tiny_models.save(where / "other", other, tiny_models.make_chat_tokenizer()), options


def change_tokenizer(folder, options, where):
    words = tiny_models.make_chat_tokenizer(pad=tiny_models.PAD)
    return tiny_models.save(where / "other", tiny_models.make_llama(), words), options


CHANGED = {
    "weights": change_weights,
    "architecture": change_architecture,
    "tokenizer": change_tokenizer,
    "template": change_template,
    "truncation": lambda folder, options, where: (folder, {"max_length": 127}),
    "special_tokens": lambda folder, options, where: (folder, {"special_tokens": "neutralize"}),
    "dtype": lambda folder, options, where: (folder, {"dtype": "bfloat16"}),
    "precision": lambda folder, options, where: (folder, {"precision": "bf16-mixed"}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_of_something_else_is_refused_by_name(name, file, tiny_llama, tmp_path, counted):
    """Where the path is given; where it is left out, the right file is found or made."""
    path = tmp_path / "ref.safetensors"
    looked_up(tiny_llama, file, Precomputed(path=str(path)))
    before = path.read_bytes()
    counted.clear()
    folder, options = CHANGED[name](tiny_llama, {}, tmp_path)
    with pytest.raises(UserError, match=f"error: {name}: the file has .*, this run has ") as raised:
        looked_up(folder, file, Precomputed(path=str(path)), **options)
    assert raised.value.code == ExitCode.CONFIG
    assert [line.split()[1] for line in str(raised.value).splitlines()[:-1]] == [f"{name}:"]
    assert not counted
    assert path.read_bytes() == before
    looked_up(tiny_llama, file)
    looked_up(folder, file, **options)
    assert len(files()) == 2


def test_a_trained_adapter_is_part_of_the_reference(tiny_llama, file, tmp_path):
    made = short_runs.ready(tiny_llama, lora=Lora(r=2))
    short_runs.take_steps(made, short_runs.batch(made, file), 3)
    folder = tmp_path / "sft"
    save_model(made.policy, made.tokenizer, folder, str(tiny_llama))
    path = str(tmp_path / "ref.safetensors")
    looked_up(tiny_llama, file, Precomputed(path=path))
    with pytest.raises(UserError, match="adapter: the file has none, this run has "):
        looked_up(folder, file, Precomputed(path=path))
    live, found = short_runs.ready(folder), looked_up(folder, file)
    batch = short_runs.batch(found, file)
    expected = live.reference(live.policy, batch).sums
    torch.testing.assert_close(found.reference(found.policy, batch).sums, expected, rtol=1e-5, atol=1e-4)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="a weight file is missing"):
        model_digests(CausalLM(str(folder)))


def test_the_file_is_found_again(tiny_llama, file, counted):
    """By other layouts, batch sizes, adapters, losses, row orders and names of files; computed once."""
    looked_up(tiny_llama, file)
    assert sum(counted) == 9
    (path,) = files()
    content = path.read_bytes()
    reordered = Path("other.jsonl")
    reordered.write_text("\n".join(reversed(file.read_text().splitlines())))
    looked_up(tiny_llama, reordered, batch_size=3, collator=Padded(), lora=Lora(r=2), gradient_checkpointing=True)
    assert sum(counted) == 9
    assert files() == [path]
    assert path.read_bytes() == content
