"""The manifest of a sweep: written once, compared from then on, extended but never changed in silence."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dpo_lightning.errors import UserError
from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.manifest import FILE, PROBE, WHOLE, Manifest, describe_config, file_identity, settle


def manifest(*betas, rate=1e-5):
    points = make_points({"model.loss.beta": [str(beta) for beta in betas]}, [])
    return Manifest(points, [{"model.loss.beta": beta, "model.learning_rate": rate} for beta in betas])


def test_what_all_points_share_is_written_once_and_read_back(tmp_path):
    settle(tmp_path, manifest(0.1, 0.5))
    content = json.loads((tmp_path / FILE).read_text())
    assert content["common"] == {"model.learning_rate": 1e-5}
    assert [point["own"] for point in content["points"]] == [{"model.loss.beta": 0.1}, {"model.loss.beta": 0.5}]
    assert Manifest.read(tmp_path / FILE) == manifest(0.1, 0.5)
    assert len({point["digest"] for point in content["points"]}) == 2


def test_the_same_again_and_more_points(tmp_path):
    settle(tmp_path, manifest(0.1))
    before = (tmp_path / FILE).read_bytes()
    settle(tmp_path, manifest(0.1))
    assert (tmp_path / FILE).read_bytes() == before
    settle(tmp_path, manifest(0.1, 0.5))
    assert Manifest.read(tmp_path / FILE) == manifest(0.1, 0.5)


def test_another_sweep_is_refused_with_the_difference(tmp_path):
    settle(tmp_path, manifest(0.1, 0.5))
    before = (tmp_path / FILE).read_bytes()
    for wanted, extend, said in (
        (manifest(0.1, 0.5, rate=2e-5), True, "differs in beta-0.1: model.learning_rate: 1e-05 there, 2e-05 now"),
        (manifest(0.1), True, "differs in beta-0.5: it is not among the points of this command"),
        (manifest(0.1, 0.5, 1.0), False, "differs in beta-1.0: it is not among the points of the manifest"),
    ):
        with pytest.raises(UserError) as raised:
            settle(tmp_path, wanted, extend=extend)
        assert (raised.value.code, said in str(raised.value)) == (73, True), raised.value
        assert (tmp_path / FILE).read_bytes() == before


def test_tasks_that_start_at_once_agree_on_one_manifest(tmp_path):
    """Two different ones, ten times each: one is written, and all of the others are refused."""
    barrier = Barrier(8)

    def begin(rate):
        barrier.wait()
        try:
            settle(tmp_path, manifest(0.1, 0.5, rate=rate), extend=False)
        except UserError:
            return None
        return rate

    with ThreadPoolExecutor(8) as pool:
        rates = set(pool.map(begin, [1e-5, 2e-5] * 4)) - {None}
    assert len(rates) == 1
    assert Manifest.read(tmp_path / FILE) == manifest(0.1, 0.5, rate=rates.pop())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_system_without_links_has_a_manifest_as_well(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    settle(tmp_path, manifest(0.1))
    assert Manifest.read(tmp_path / FILE) == manifest(0.1)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_folders_and_files_of_others_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="not of a sweep"):
        settle(tmp_path, manifest(0.1))
    for text, code in (("{", 65), ('{"format": 99}', 65)):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError) as raised:
            settle(tmp_path, manifest(0.1))
        assert raised.value.code == code


def test_the_config_of_a_point_knows_the_files_that_it_names(tmp_path):
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model"
    rows.write_text("one\n")
    model.mkdir()
    (model / "config.json").write_text("{}")
    config = {
        "output_dir": "x",
        "seed_everything": 1,
        "model": {"class_path": "DPOModule", "init_args": {"policy": {"path": str(model)}}},
        "data": {"init_args": {"train": [str(rows)], "eval": "hf://a/b"}},
    }
    first = describe_config(config)
    assert "output_dir" not in first
    assert first["model.policy.path"] == str(model)
    assert first == describe_config(config | {"output_dir": "y"})
    rows.write_text("two\n")
    second = describe_config(config)
    assert {key for key in first if first[key] != second[key]} == {f"content of {rows}"}
    (model / "config.json").write_text("[]")
    assert describe_config(config)[f"content of {model}"] != second[f"content of {model}"]


def test_a_large_file_is_known_by_its_size_and_ends(tmp_path):
    path = tmp_path / "weights.safetensors"

    def identity(begin, end, size=WHOLE + PROBE):
        with path.open("wb") as file:
            file.truncate(size)
            file.write(begin)
            file.seek(-1, 2)
            file.write(end)
        return file_identity(path)

    found = {identity(b"a", b"a"), identity(b"b", b"a"), identity(b"a", b"b"), identity(b"a", b"a", 2 * WHOLE)}
    assert len(found) == 4


def damage(content, name):
    """Change a manifest as somebody else could have written it."""
    point = content["points"][0]
    match name:
        case "a value":
            point["own"] = {"model.loss.beta": 0.2}
        case "a name that leads out":
            point["name"] = "../../x"
        case "a name that is none":
            point["name"] = {"a": 1}
        case "a key too few":
            del point["digest"]
        case "values of other types":
            point["overrides"] = {"model.loss.beta": [1]}
        case "no points":
            content["points"] = []
        case "points that are none":
            content["points"] = 5


@pytest.mark.parametrize(
    "name",
    ["a value", "a name that leads out", "a name that is none", "a key too few", "values of other types",
     "no points", "points that are none"],
)  # fmt: skip
def test_a_manifest_that_was_changed_is_not_read(tmp_path, name):
    settle(tmp_path, manifest(0.1, 0.5))
    content = json.loads((tmp_path / FILE).read_text())
    damage(content, name)
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="the manifest is damaged") as caught:
        Manifest.read(tmp_path / FILE)
    assert caught.value.code == 65


def test_a_place_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "file" / "x", tmp_path / "loop"):
        with pytest.raises(UserError, match="the folder cannot be written") as caught:
            settle(place, manifest(0.1))
        assert caught.value.code == 73
