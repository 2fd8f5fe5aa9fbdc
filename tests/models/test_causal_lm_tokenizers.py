"""Loading the tokenizer of a policy: ids without embeddings, tokens that were never added, files that are broken."""

import json

import pytest
from support import tiny_models
from support.refusals import refused
from support.tiny_models import change_json

from dpo_lightning.models.causal_lm import CausalLM


def test_more_ids_than_embeddings(tmp_path, chat_tokenizer):
    folder = tiny_models.save(tmp_path, tiny_models.make_llama(len(chat_tokenizer) - 1), chat_tokenizer)
    message = refused(CausalLM(str(folder)).tokenizer)
    assert f"ids up to {len(chat_tokenizer) - 1}, the model has {len(chat_tokenizer) - 1}" in message


def test_an_id_beyond_a_gap(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 900
    file.write_text(json.dumps(content))
    assert "ids up to 900, the model has 480 embeddings" in refused(CausalLM(str(folder)).tokenizer)


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "bos_token"])
@pytest.mark.parametrize("token", ["<|never|>", "the answer", {"content": "<|never|>", "__type": "AddedToken"}])
def test_a_token_that_was_never_added_is_refused_by_name(name, token, folder):
    """transformers makes an id for it, which fits in where the model embeds more ids than the tokenizer has."""
    change_json(folder / "tokenizer_config.json", **{name: token})
    text = token if isinstance(token, str) else token["content"]
    message = refused(CausalLM(str(folder)).tokenizer)
    assert f"{name} {text} is not in the tokenizer's vocabulary" in message
    assert "tokenizer_config.json" in message


def test_a_token_that_was_never_added_is_named_where_its_id_has_no_embedding(tmp_path, chat_tokenizer):
    """Not the number of embeddings, which fits the tokenizer's own files."""
    folder = tiny_models.save(tmp_path, tiny_models.make_llama(len(chat_tokenizer)), chat_tokenizer)
    change_json(folder / "tokenizer_config.json", eos_token="<|never|>")
    message = refused(CausalLM(str(folder)).tokenizer)
    assert "eos_token <|never|> is not in the tokenizer's vocabulary" in message


def test_a_token_that_was_added_beside_the_vocabulary_is_taken(folder):
    words = tiny_models.make_chat_tokenizer()
    words.add_special_tokens({"eos_token": "<|stop|>"})
    words.save_pretrained(folder)
    assert CausalLM(str(folder)).tokenizer().eos_token_id == len(words) - 1
    word = words.convert_ids_to_tokens(300)
    change_json(folder / "tokenizer_config.json", eos_token=word)
    assert CausalLM(str(folder)).tokenizer().eos_token_id == 300
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "<|stop|>"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    added = {str(len(words) - 1): {"content": "<|stop|>", "special": True}}
    change_json(folder / "tokenizer_config.json", eos_token="<|stop|>", added_tokens_decoder=added)
    assert CausalLM(str(folder)).tokenizer().eos_token_id == len(words) - 1


def test_a_padding_token_that_only_its_class_names_is_no_fault(folder):
    change_json(folder / "tokenizer_config.json", pad_token=None)
    assert CausalLM(str(folder)).tokenizer().pad_token is None


def test_a_tokenizer_without_eos(folder):
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    assert "no EOS" in refused(CausalLM(str(folder)).tokenizer)


@pytest.mark.parametrize("text", [None, "{", '{"a": 1}'])
def test_a_broken_tokenizer(folder, text):
    (folder / "tokenizer.json").unlink()
    if text is None:
        (folder / "tokenizer_config.json").unlink()
    else:
        (folder / "tokenizer.json").write_text(text)
    assert "cannot be loaded" in refused(CausalLM(str(folder)).tokenizer)


def test_end_ids_are_the_generation_configs(folder):
    assert CausalLM(str(folder)).end_ids() == {2}
    change_json(folder / "generation_config.json", eos_token_id=[0, 2])
    assert CausalLM(str(folder)).end_ids() == {0, 2}
    change_json(folder / "generation_config.json", eos_token_id=None)
    assert CausalLM(str(folder)).end_ids() == frozenset()
    (folder / "generation_config.json").unlink()
    assert CausalLM(str(folder)).end_ids() == frozenset()
