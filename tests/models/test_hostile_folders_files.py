"""Files of a folder from elsewhere that are pipes, devices or far too large: refused by name, before anything waits."""

import contextlib
import os
import shutil
import socket

import pytest
from support.command_line import infer, refused, run
from support.tiny_models import change_json

from dpo_lightning.errors import UserError
from dpo_lightning.models.folder_files import check_description, check_entries
from dpo_lightning.models.patterns import check_tokenizer_file

pytestmark = pytest.mark.usefixtures("given_up")


# Pipes, sockets, devices and folders


def special(path, kind):
    """Put something at a path that is no file."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json",
         "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json",
         "merges.txt", "tokenizer.model", "dpo_lightning.json")  # fmt: skip


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a folder"])
def test_no_file_of_a_model_is_waited_for(folder, kind):
    for name in FILES:
        copy = shutil.copytree(folder, folder.with_name("copy"))
        special(copy / name, kind)
        refused(infer(copy), 67, kind, str(copy / name))
        refused(run("export", "--model", copy, "--out", copy.with_name("out")), 67, kind, str(copy / name))
        shutil.rmtree(copy)


def test_a_pipe_among_the_further_templates(folder):
    (folder / "additional_chat_templates").mkdir()
    special(folder / "additional_chat_templates" / "tool_use.jinja", "a pipe")
    refused(infer(folder), 67, "a pipe", "tool_use.jinja")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "dpo_lightning.json",
                                  "tokenizer_config.json", "tokenizer.json"])  # fmt: skip
def test_no_file_of_an_adapter_is_waited_for(adapter, name):
    special(adapter / name, "a pipe")
    refused(infer(adapter), 67, "a pipe", name)


def linked(folder, home):
    """A folder of links to the files of another one."""
    home.mkdir(parents=True)
    for path in folder.iterdir():
        (home / path.name).symlink_to(os.path.relpath(path, home))
    return home


def test_links_of_a_hubs_cache_are_followed(folder, tmp_path):
    """Its snapshots are links to the blobs beside them; also where the folder is reached by a link itself."""
    blobs = shutil.copytree(folder, tmp_path / "hub" / "models--org--name" / "blobs")
    snapshot = linked(blobs, blobs.parent / "snapshots" / "abc")
    (tmp_path / "model2").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "model2"):
        assert infer(path).code == 0
    for name in ("chat_template.jinja", "config.json"):
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(name)
        refused(infer(snapshot), 67, name, "Too many levels of symbolic links")
        (snapshot / name).unlink()


def test_links_within_the_folder_are_followed(folder):
    (folder / "chat_template.jinja").rename(folder / "template.txt")
    (folder / "chat_template.jinja").symlink_to("template.txt")
    assert infer(folder).code == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_links_that_leave_the_folder_are_not(folder, tmp_path, name):
    """They could lead to any file of the user's, whose content would be in the next model."""
    other = linked(folder, tmp_path / "linked")
    for path in other.iterdir():
        if path.name != name:
            path.unlink()
            shutil.copy(folder / path.name, path)
    refused(infer(other), 67, "a link that leaves the folder", name, "copy its target")


def test_files_that_are_far_too_large(folder):
    for name, size in (("config.json", 1 << 36), ("tokenizer.json", 1 << 36), ("generation_config.json", 1 << 30)):
        copy = shutil.copytree(folder, folder.with_name("copy"))
        os.truncate(copy / name, size)  # of holes: it takes no room on the disk
        refused(infer(copy), 67, "MiB", name)
        shutil.rmtree(copy)


@pytest.mark.parametrize("suffix", [".json", ".jinja", ".txt", ".model", ".tiktoken"])
def test_a_file_of_any_kind_that_is_read_has_a_limit(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    for make, said in ((path.mkdir, "a folder"), (path.touch, "a file of more than 512 MiB")):
        make()
        if path.is_file():
            os.truncate(path, (512 << 20) + 1)
        with pytest.raises(UserError, match=f"expected a file of the model, found {said}"):
            check_entries(tmp_path)
        if path.is_dir():
            path.rmdir()


def test_what_lies_in_a_folder_besides(folder):
    """Large weights, folders of other names, links to what was not fetched, and keys that mean something elsewhere."""
    os.truncate(folder / "model.safetensors", 1 << 36)
    (folder / "runs").mkdir()
    (folder / "notes.txt").symlink_to("nothing")
    change_json(folder / "config.json", adapters=["a"], tokenizer_name_or_path="org/name", runtime_config={"a": 1})
    check_description(folder, "config.json")


def test_a_header_that_is_far_too_large(folder):
    file = folder / "model.safetensors"
    file.write_bytes((1 << 34).to_bytes(8, "little"))
    os.truncate(file, 1 << 35)
    refused(infer(folder), 67, str(file))


# Sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 1e300},
        {"text_config": {"num_layers": 10**7}},
        {"num_experts": 10**9},
        {"hidden_size": 10**6},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"vocab_size": 10**11},
        {"num_attention_heads": 10**9},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**15},
    ],
)
def test_a_model_far_larger_than_its_weights(folder, changes):
    change_json(folder / "config.json", **changes)
    ran = infer(folder)
    if "max_position_embeddings" in changes:  # rotary positions are computed
        assert ran.code == 0
    else:
        refused(ran, 67)


def test_positions_that_are_stored(tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    change_json(folder / "config.json", n_positions=10**10)
    refused(infer(folder, "--template", "raw"), 67, "config.json")


@pytest.mark.parametrize("changes", [{"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}])
def test_a_rank_far_larger_than_the_weights(adapter, changes):
    change_json(adapter / "adapter_config.json", **changes)
    refused(infer(adapter), 67, "exceeds every stored matrix", "adapter_config.json")


@pytest.mark.parametrize("ids", ["x", [1, "x"], [[1]], {"a": 1}, 1.5, True])
def test_an_end_that_is_no_token(folder, ids):
    change_json(folder / "generation_config.json", eos_token_id=ids)
    refused(infer(folder), 67, "generation_config.json")


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_broken_file_is_no_missing_one(folder, name):
    for text in ("{", "[1]"):
        (folder / name).write_text(text)
        refused(infer(folder), 67, "the model file is damaged", str(folder / name))


@pytest.mark.parametrize("text", ["true", "5", "[1]", '"x"', "null"])
def test_a_tokenizer_file_that_is_no_object_has_no_expressions(tmp_path, text):
    """The loader reports it."""
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    check_tokenizer_file(path)
