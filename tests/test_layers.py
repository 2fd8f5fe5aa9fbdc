"""The architecture: floors whose imports point downwards, who may import and call what, and how long things get."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dpo_lightning

FLOORS = (
    "version activity errors terminal foreign_names console streams launcher_variables library_variables log "
    "folder_names special_files json_files atomic_files limits batches types intervals signals stopping sharding "
    "sampling",
    "attention losses logps metrics data hardware",
    "models references config.library_noise runs.memory_estimate",
    "ranks fsdp2 logger_failures config runs callbacks loss_requirements optimizers schedules policy_module "
    "preference_module sft dpo kto listwise data.row_loaders data.text_datamodule data.datamodules evaluation "
    "comparison sweeps pages",
    "default_callbacks cli commands __main__ __init__",
)
"""Wings and modules, lowest floor first; a wing's modules are on its floor, where they are not listed themselves."""

ONLY_ON = {"transformers": {2}, "peft": {2}, "lightning": {3, 4}}
LOG_SOFTMAX = {"log_softmax", "logsumexp", "cross_entropy", "nll_loss", "CrossEntropyLoss", "LogSoftmax", "NLLLoss"}
SEQUENCES = {"input_ids", "targets", "labels", "logits"}
MOST_LINES, MOST_FUNCTION_LINES = 300, 50


def floor_of(name):
    """The floor of a module or of the nearest package around it; None where no floor lists either."""
    while name:
        for i, names in enumerate(FLOORS):
            if name in names.split():
                return i
        name = name.rpartition(".")[0]
    return None


def imports(tree, package, modules):
    """(module or foreign package, line, whether a run can execute it) of every import, those in functions included.

    A package whose classes load on first use names their modules in a dictionary `_HOME`.
    """
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if not node.level else ["." * node.level + base]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            names = sorted(set(ast.literal_eval(node.value).values()))
        else:
            continue
        for name in names:
            own = name.removeprefix(f"{package}.")
            if own == name:
                yield name.split(".")[0] or ".", node.lineno, id(node) not in typing
            else:  # a name of a module, a module, or (from the package itself) a public name
                target = next((part for part in (own, own.rpartition(".")[0]) if part in modules), "__init__")
                yield target, node.lineno, id(node) not in typing


def shifts(node):
    """Whether an expression moves a sequence by one, as far as its text tells."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return name == "roll" or any(keyword.arg == "labels" for keyword in node.keywords)
    if not isinstance(node, ast.Subscript):
        return False
    several = isinstance(node.slice, ast.Tuple)
    ends = {ast.unparse(part) for part in (node.slice.elts if several else [node.slice])}
    named = getattr(node.value, "attr", getattr(node.value, "id", "")) in SEQUENCES
    return bool(ends & {"1:", ":-1"}) and (several or named)


def length(function):
    """Lines of a function without its docstring, which is the text of `--help`."""
    documented = ast.get_docstring(function) is not None
    text = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - text


def long_files(files):
    """Files of more than `MOST_LINES` lines, of (name, source)."""
    return [f"{name}: over {MOST_LINES} lines" for name, source in files if len(source.splitlines()) > MOST_LINES]


def file_violations(name, source, tree):
    """What a file may not hold, whatever it imports."""
    yield from long_files([(name, source)])
    if {"utils", "common", "helpers"} & set(name.split(".")):
        yield f"{name}: a name that says nothing"
    for word in ("NotImplementedError", "TODO", "FIXME"):
        if word in source:
            yield f"{name}: {word}"
    for node in ast.walk(tree):
        called = getattr(node, "attr", getattr(node, "id", None))
        if called in LOG_SOFTMAX and name != "logps":
            yield f"{name}:{node.lineno}: {called} outside logps.py"
        if shifts(node) and name != "data.collate":
            yield f"{name}:{node.lineno}: shifts a sequence outside collate.py: {ast.unparse(node)}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length(node) > MOST_FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} is over {MOST_FUNCTION_LINES} lines"


def violations(root):
    """Everything in the package folder `root` that breaks the architecture."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    files = {name.removesuffix(".__init__") or name: path for name, path in paths.items()}
    graph = {}
    for name, path in sorted(files.items()):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        yield from file_violations(name, source, tree)
        floor, graph[name] = floor_of(name), set()
        if floor is None:
            yield f"{name}: is on no floor"
            continue
        for target, line, executed in imports(tree, root.name, files):
            own = target.startswith(f"{name}.")  # a package hands on the classes of its modules
            below = floor_of(target) if target in files and not own else None
            if below is not None and below > floor:
                yield f"{name}:{line}: floor {floor} imports {target} of floor {below}"
            if floor not in ONLY_ON.get(target, {floor}):
                yield f"{name}:{line}: floor {floor} imports {target}"
            if target == ".":
                yield f"{name}:{line}: a relative import"
            if target in files and executed:
                graph[name].add(target)
    yield from cycles(graph)


def cycles(graph):
    """Cycles of modules, and of wings: module -> the modules that it imports."""
    wings = defaultdict(set)
    for name, targets in graph.items():
        wings[wing_of(name)] |= {wing_of(target) for target in targets} - {wing_of(name)}
    for kind, arrows in (("import", graph), ("wing", wings)):
        try:
            TopologicalSorter(arrows).prepare()
        except CycleError as error:
            yield f"{kind} cycle: {' -> '.join(error.args[1])}"


def wing_of(name):
    """The folder of a module, or the module itself at the front door."""
    return name.partition(".")[0]


def test_the_package_keeps_its_architecture():
    assert list(violations(Path(dpo_lightning.__file__).parent)) == []


def test_test_files_are_as_short_as_modules():
    tests = Path(__file__).parent
    files = {str(path.relative_to(tests)): path.read_text(encoding="utf-8") for path in sorted(tests.rglob("*.py"))}
    assert Path(__file__).name in files
    assert long_files(files.items()) == []


TOY = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.dpo import DPOModule\n",
    "types.py": "import torch\n",
    "logps.py": "from torch.nn.functional import cross_entropy\nx = cross_entropy\n",
    "data/__init__.py": "",
    "data/collate.py": "import toy.types\ndef shift(targets):\n    return targets[:, 1:]\n",
    "data/text_datamodule.py": "import lightning\nfrom toy.data import collate\n",
    "models.py": "def f():\n    import transformers\n    from toy import types\n    return x[1:], types\n",
    "dpo.py": "from toy.models import f\nfrom toy import models\n",
}


def toy(folder, changes):
    """A sound toy package with some files changed."""
    for name, source in (TOY | changes).items():
        path = folder / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return list(violations(folder / "toy"))


def test_a_sound_toy_package_passes(tmp_path):
    assert toy(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("types.py", "from toy.logps import x\n", "types:1: floor 0 imports logps of floor 1"),
        ("types.py", "def f():\n    import toy.dpo\n", "types:2: floor 0 imports dpo of floor 3"),
        ("types.py", "from toy import dpo\n", "types:1: floor 0 imports dpo of floor 3"),
        ("data/rows.py", "from toy.data.text_datamodule import D\n", "floor 1 imports data.text_datamodule of floor 3"),
        ("data/rows.py", "import lightning.pytorch as pl\n", "data.rows:1: floor 1 imports lightning"),
        ("metrics.py", "def f():\n    from transformers import A\n", "metrics:2: floor 1 imports transformers"),
        ("dpo.py", "import peft\n", "dpo:1: floor 3 imports peft"),
        ("models.py", "import lightning\n", "models:1: floor 2 imports lightning"),
        ("dpo.py", "from .models import f\n", "dpo:1: a relative import"),
        ("models.py", "import toy.hardware\n", None),
        ("metrics.py", "from toy.losses import a\n", None),
        ("metrics.py", "def f(x):\n    return x.log_softmax(-1)\n", "metrics:2: log_softmax outside logps.py"),
        ("metrics.py", "import torch\nx = torch.nn.functional.cross_entropy\n", "metrics:2: cross_entropy outside"),
        ("dpo.py", "def f(ids):\n    return ids[:, :-1]\n", "dpo:2: shifts a sequence outside collate.py"),
        ("dpo.py", "def f(batch):\n    return batch.targets[1:]\n", "dpo:2: shifts a sequence"),
        ("dpo.py", "def f(x):\n    return x.roll(-1)\n", "dpo:2: shifts a sequence"),
        ("dpo.py", "def f(m, x):\n    return m(x, labels=x)\n", "dpo:2: shifts a sequence"),
        ("dpo.py", "\n" * 301, "dpo: over 300 lines"),
        ("dpo.py", "def f():\n" + "    x = 1\n" * 50, "dpo:1: f is over 50 lines"),
        ("data/utils.py", "", "data.utils: a name that says nothing"),
        ("dpo.py", "raise NotImplementedError\n", "dpo: NotImplementedError"),
        ("dpo.py", "# TODO\n", "dpo: TODO"),
        ("ppo.py", "", "ppo: is on no floor"),
    ],
)
def test_a_violation_is_found(tmp_path, name, source, complaint):
    changes = {name: source} | {n: "" for n in ("hardware.py", "losses/__init__.py") if complaint is None}
    found = toy(tmp_path, changes)
    assert (found == []) if complaint is None else any(complaint in line for line in found), found


@pytest.mark.parametrize("late", [False, True])
def test_a_cycle_is_found(tmp_path, late):
    """Also where one of the imports waits for a call."""
    there, back = "import toy.metrics\n", "import toy.logps\n"
    back = f"def f():\n    {back}" if late else back
    assert toy(tmp_path, {"logps.py": there, "metrics.py": ""}) == []
    assert "import cycle" in toy(tmp_path, {"logps.py": there, "metrics.py": back})[0]


def test_imports_for_type_checkers_make_no_cycle(tmp_path):
    back = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toy.logps\n"
    assert toy(tmp_path, {"logps.py": "import toy.metrics\n", "metrics.py": back}) == []


def test_a_cycle_of_wings_is_found(tmp_path):
    """Though no module imports itself by way of another."""
    changes = {"losses/a.py": "import toy.data.rows\n", "data/rows.py": "", "data/more.py": "import toy.losses.b\n"}
    assert "wing cycle" in toy(tmp_path, {**changes, "losses/b.py": ""})[0]


def test_classes_that_load_on_first_use_are_imports(tmp_path):
    face = "_HOME = {'A': 'toy.callbacks.a'}\n"
    assert toy(tmp_path, {"callbacks/__init__.py": face, "callbacks/a.py": ""}) == []
    assert "import cycle" in toy(tmp_path, {"callbacks/a.py": "from toy.callbacks import A\n"})[0]
