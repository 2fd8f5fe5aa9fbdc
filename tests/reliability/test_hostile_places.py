"""Where a stranger's config may write, which files it may name as its parts, and which data sets of a hub are local."""

from pathlib import Path

import pytest
from support.command_line import refused

from dpo_lightning.config.class_paths import Namespace
from dpo_lightning.config.files import LARGEST_CONFIG, check_flags, read_config
from dpo_lightning.config.output_paths import check_outputs
from dpo_lightning.config.values import check_values
from dpo_lightning.data.cache.cache_folder import KNOWN_DIGESTS
from dpo_lightning.data.readers.arrow_rows import check_hub_id
from dpo_lightning.errors import UserError


def config(cache="auto", output_dir="run"):
    return {
        "output_dir": output_dir,
        "model": Namespace(),
        "trainer": Namespace(),
        "data": Namespace(init_args=Namespace(cache=cache)),
    }


@pytest.mark.parametrize("cache", ["../rows", "/tmp/rows", "$HOME/rows", "~/rows", "run/../other", "link"])
def test_encoded_rows_are_not_written_elsewhere(place, cache):
    (place / "home").mkdir()
    (place / "link").symlink_to("home")
    with pytest.raises(UserError, match="outside of output_dir"):
        check_outputs(config(cache), ["fit"])
    check_outputs(config(cache), ["--data.cache", cache])
    check_outputs(config(cache), [f"--data.init_args.cache={cache}"])


def test_encoded_rows_are_written_where_they_are(place):
    """A folder that has some; the one beside the run; none."""
    (place / "rows").mkdir()
    (place / "rows" / KNOWN_DIGESTS).touch()
    for cache in ("rows", "encoded", "run/rows", "auto", "none", "NULL", False, None):
        check_outputs(config(cache), ["fit"])


def test_a_run_lies_below_the_working_folder(place):
    with pytest.raises(UserError, match="may not lead up") as caught:
        check_outputs(config(output_dir="../run"), ["fit"])
    assert "output_dir" in str(caught.value)
    check_outputs(config(output_dir="../run"), ["--output_dir=../run"])
    (place / "x").mkdir()
    (place / "old").mkdir()
    (place / "old" / "config.yaml").touch()
    check_outputs(config(output_dir=str(place / "x" / ".." / "old")), ["fit"])


def test_the_parts_of_a_config_are_checked_as_it_is(place):
    """Also beside the config, where the parser looks for them, and where a flag names one."""
    (place / "other").mkdir()
    for text, said in (("a: 1\na: 2", "repeated"), ("a: &a [*a]", "expand"), ("a: '\x1b'", "a special|special char")):
        (place / "other" / "part.yaml").write_text(text)
        (place / "other" / "whole.yaml").write_text("trainer: {callbacks: [part.yaml]}")
        with pytest.raises(UserError, match=said):
            read_config("other/whole.yaml")
        with pytest.raises(UserError, match=said):
            check_flags(["--trainer.callbacks+=other/part.yaml"])
        with pytest.raises(UserError, match=said):
            check_flags(["--model.loss", "other/part.yaml"])
        check_flags(["--data.train", "other/part.yaml"])
    (place / "a.yaml").write_text("callbacks: b.yaml")
    (place / "b.yaml").write_text("callbacks: a.yaml")
    with pytest.raises(UserError, match="part of itself"):
        read_config("a.yaml")


def test_a_config_is_small_text_and_names_no_other(place):
    path = Path("x.yaml")
    for content, said in (
        (b"#" * (LARGEST_CONFIG + 1), "more than 1 MiB"),
        ("a: 1".encode("utf-16"), "not text in UTF-8"),
        (b"config: y.yaml", "cannot name a further config"),
        (b"a: " + b"9" * 5000, "thousands of digits"),
        (b"a: " + b"9" * 50, "too large"),
        (b"a: [1" + b":59" * 5000 + b"]", "too large"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_config(str(path))
    check_values([2**63, True, -5, 1e300], "a")


@pytest.mark.parametrize("name", ["hf://../../etc", "hf://../etc", "hf://./x", "hf://a/..", "hf://a/../x", "hf://-a/b"])
def test_a_name_that_leaves_the_hub(place, name):
    with pytest.raises(UserError, match="not a valid name"):
        check_hub_id(name)


def test_a_data_set_of_a_hub_that_is_here(place):
    """`datasets` would read the folder."""
    check_hub_id("hf://org/name")
    (place / "org" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match="has the name of this data set") as caught:
        check_hub_id("hf://org/name:test")
    assert caught.value.code == 64


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**64)])
def test_a_seed_that_no_generator_takes(bench, seed):
    refused(bench.fit("--seed_everything", seed), 64, "seed_everything")
