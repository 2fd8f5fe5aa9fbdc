"""How many small faults, planted one at a time, do the fast tests catch? For maintainers; `make test` does not run it.

    python -m pip install cosmic-ray
    mkdir /tmp/mutants && git archive HEAD | tar -x -C /tmp/mutants && cd /tmp/mutants   # nothing else sees the faults
    export PYTHONPATH=/tmp/mutants
    python -m pytest -q -m "not slow" --cov --cov-context=test --cov-report=             # which test runs which line
    python tests/mutants.py --seed 1 --count 150 losses logps data/collate               # parts of the package

cosmic-ray lists the faults. Places are drawn and one fault for each; against it, those tests alone are run that run its
line, the lightest first, in a process that is forked with all libraries loaded. A test that hangs has caught it. What
survived is listed at the end: a test is missing, or the fault changes nothing.
"""

import argparse
import ast
import collections
import gc
import importlib
import os
import random
import sys
from pathlib import Path

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

PACKAGE = Path("dpo_lightning")
HEAVY = "beartype hypothesis bitsandbytes datasets lightning.pytorch peft torch._dynamo torchmetrics transformers trl"
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--timeout", "120"]
CAUGHT = Path("caught.txt").resolve()  # tests change the folder
MOST = 300  # tests that are run against a fault


def read_coverage():
    """For each module, line -> the tests that run it; and how many lines each test runs."""
    data = coverage.CoverageData()
    data.read()
    lines, weights = {}, collections.Counter()
    for path in data.measured_files():
        contexts = data.contexts_by_lineno(path).items()
        found = {line: {name.rpartition("|")[0] for name in names if name} for line, names in contexts}
        lines[path.rpartition(f"/{PACKAGE}/")[2]] = found
        weights.update(test for tests in found.values() for test in tests)
    return lines, weights


def choose_tests(source, line, lines, weights):
    """The tests that run the statement of a line; those of its class or module where only the import runs it."""
    nodes = ast.walk(ast.parse(source))
    around = [node for node in nodes if getattr(node, "lineno", line + 1) <= line <= node.end_lineno]
    statement = max((node for node in around if isinstance(node, ast.stmt)), key=lambda node: node.lineno, default=None)
    classes = [node for node in around if isinstance(node, ast.ClassDef)]
    spans = [(node.lineno, node.end_lineno) for node in (statement, *classes[-1:]) if node is not None]
    for first, last in [(line, line), *spans, (1, len(source))]:
        if tests := set().union(*(own for number, own in lines.items() if first <= number <= last)):
            return sorted(tests, key=lambda test: (weights[test], test))[:MOST]
    return []


def list_faults(path):
    """Every fault of a module by its place, as (operator, occurrence).

    Annotations, which nothing reads, have none, nor have dotted exceptions, which cosmic-ray cannot replace.
    """
    source = path.read_text()
    unread = set()
    for node in ast.walk(ast.parse(source)):
        for note in filter(None, (getattr(node, "annotation", None), getattr(node, "returns", None))):
            unread |= {(note.lineno, column) for column in range(note.col_offset, note.end_col_offset)}
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            dotted = (part for part in ast.walk(node.type) if isinstance(part, ast.Attribute))
            unread |= {(part.lineno, part.col_offset) for part in dotted}
    nodes, faults = list(ast_nodes(get_ast(source))), collections.defaultdict(list)
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if not operator.arguments():
            starts = (start for node in nodes for start, _ in operator().mutation_positions(node))
            for occurrence, start in enumerate(starts):
                if start not in unread:
                    faults[path, *start].append((name, occurrence))
    return faults


class Chosen:
    """A plugin of pytest that runs some tests alone, in this order, and notes the one that fails."""

    def __init__(self, tests):
        self.rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((it for it in items if it.nodeid in self.rank), key=lambda it: self.rank[it.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            CAUGHT.write_text(report.nodeid)


def run_tests(tests):
    """Run tests in a fork: the one that fails, or nothing."""
    CAUGHT.unlink(missing_ok=True)
    if not (child := os.fork()):
        for stream in (1, 2):
            os.dup2(os.open("tests.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.dont_write_bytecode = True  # to Python's cache, two faults in one second would be one
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        os._exit(pytest.main([*OPTIONS, *files], plugins=[Chosen(tests)]))
    if os.waitpid(child, 0)[1] == 0:
        return ""
    return CAUGHT.read_text() if CAUGHT.exists() else "the import"


def plant(path, operator, occurrence, tests):
    """Run tests against one fault: the line before and after it, and what caught it."""
    source, times = path.read_text(), path.stat()
    faulty = mutate_code(source, get_operator(operator)(), occurrence)
    pairs = zip(source.splitlines(), faulty.splitlines(), strict=False)
    change = next((f"{one.strip()}  ->  {other.strip()}" for one, other in pairs if one != other), operator)
    path.write_text(faulty)
    try:
        return change, run_tests(tests) if tests else ""
    finally:
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", help="modules and folders of the package")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    lines, weights = read_coverage()
    paths = [path for part in options.parts for path in (*PACKAGE.glob(f"{part}.py"), *PACKAGE.glob(f"{part}/*.py"))]
    faults = {place: several for path in paths for place, several in list_faults(path).items()}
    for name in HEAVY.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the forks share it, and need not look through it
    draw, survivors = random.Random(options.seed), []
    for path, line, column in draw.sample(sorted(faults), options.count):
        tests = choose_tests(path.read_text(), line, lines.get(str(path.relative_to(PACKAGE)), {}), weights)
        change, caught = plant(path, *draw.choice(faults[path, line, column]), tests)
        told = f"{path}:{line}: {change}"
        print(told, f"caught by {caught}" if caught else f"SURVIVED {len(tests)} tests", sep="\n    ", flush=True)
        survivors += [] if caught else [told]
    print(f"\n{options.count - len(survivors)} of {options.count} were caught; survivors:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
