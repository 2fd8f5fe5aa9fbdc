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

PACKAGE = Path("dpo_lightning")
HEAVY = "beartype hypothesis bitsandbytes datasets lightning.pytorch peft torch._dynamo torchmetrics transformers trl"
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--timeout", "120"]
CAUGHT = Path("caught.txt")


def read_coverage():
    """For each module, line -> the tests that run it; and how many lines each test runs."""
    data = coverage.CoverageData()
    data.read()
    lines, weights = {}, collections.Counter()
    for path in data.measured_files():
        found = {
            line: {name.rpartition("|")[0] for name in names if name}
            for line, names in data.contexts_by_lineno(path).items()
        }
        lines[path.rpartition(f"/{PACKAGE}/")[2]] = found
        weights.update(test for tests in found.values() for test in tests)
    return lines, weights


def find_statement(source, line):
    """First and last line of the innermost statement around a line, without the body of a compound one."""
    around = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    inner = max(around, key=lambda node: node.lineno)
    body = getattr(inner, "body", None)
    return range(inner.lineno, max(line + 1, body[0].lineno) if body else inner.end_lineno + 1)


def choose_tests(lines, weights, statement, most):
    """The tests that run a statement, the lightest first; of one outside of functions, those that run any of these."""
    tests = set().union(*(lines.get(line, ()) for line in statement)) or set().union(*lines.values())
    return sorted(tests, key=lambda test: (weights[test], test))[:most]


def list_faults(path):
    """Every fault of a module by its place, as (operator, occurrence); annotations, which nothing reads, have none."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    notes = [
        note
        for node in ast.walk(ast.parse(source))
        for name in ("annotation", "returns")
        if (note := getattr(node, name, None))
    ]
    unread = {(note.lineno, column) for note in notes for column in range(note.col_offset, note.end_col_offset)}
    nodes, faults = list(ast_nodes(get_ast(source))), collections.defaultdict(list)
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if not operator.arguments():
            starts = [start for node in nodes for start, _ in operator().mutation_positions(node)]
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
    child = os.fork()
    if not child:
        log = os.open("tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.dont_write_bytecode = True  # two faults in one second would be one to Python's cache
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        os._exit(pytest.main([*OPTIONS, *files], plugins=[Chosen(tests)]))
    if os.waitpid(child, 0)[1] == 0:
        return ""
    return CAUGHT.read_text() if CAUGHT.exists() else "the import"


def plant(path, operator, occurrence, tests):
    """Run tests against one fault: the line before and after it, and what caught it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

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
    parser.add_argument("--most", type=int, default=300, help="tests that are run against a fault at most")
    options = parser.parse_args()
    lines, weights = read_coverage()
    faults = {}
    for part in options.parts:
        for path in sorted([*PACKAGE.glob(f"{part}.py"), *(PACKAGE / part).glob("*.py")]):
            faults |= list_faults(path)
    for name in HEAVY.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the forks share it, and do not look through it
    draw, survivors = random.Random(options.seed), []
    for path, line, column in draw.sample(sorted(faults), options.count):
        operator, occurrence = draw.choice(sorted(faults[path, line, column]))
        covered = lines.get(str(path.relative_to(PACKAGE)), {})
        tests = choose_tests(covered, weights, find_statement(path.read_text(), line), options.most)
        change, caught = plant(path, operator, occurrence, tests)
        told = f"{path}:{line}: {change}"
        print(told, f"caught by {caught}" if caught else f"SURVIVED {len(tests)} tests", sep="\n    ", flush=True)
        survivors += [] if caught else [told]
    print(f"\n{options.count - len(survivors)} of {options.count} were caught; survivors:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
