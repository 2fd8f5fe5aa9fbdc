"""Checks that locks are complete, extras included: pip installs what they list and looks for nothing else.

Usage: python requirements/check.py LOCK ... (install.sh runs it in the new environment)
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # not installed; pip has a copy, which is no public module, but pip.lock pins the pip
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PIN = re.compile(r"^([A-Za-z0-9].*==.*?)(?: \\)?$", re.MULTILINE)


def applies(requirement: Requirement, environment: Mapping[str, str]) -> bool:
    """Whether a requirement's marker holds; `environment` replaces what this Python and machine are."""
    return requirement.marker is None or requirement.marker.evaluate(dict(environment))


def read_pins(locks: Iterable[Path], environment: Mapping[str, str]) -> dict[str, str]:
    """The version of each package that the locks list for an environment."""
    lines = [Requirement(line) for lock in locks for line in PIN.findall(lock.read_text(encoding="utf-8"))]
    return {
        canonicalize_name(line.name): str(line.specifier).removeprefix("==")
        for line in lines
        if applies(line, environment)
    }


def read_project(*extras: str) -> list[Requirement]:
    """What the project itself requires, with the named extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    optional = [project["optional-dependencies"][extra] for extra in extras]
    return [Requirement(line) for lines in (project.get("dependencies", []), *optional) for line in lines]


def find_gaps(pins: Mapping[str, str], wanted: Iterable[Requirement], environment: Mapping[str, str]) -> Iterator[str]:
    """Follow requirements from package to package, by the metadata of what is installed.

    Args:
        pins: package name -> version.
        wanted: what the project requires.
        environment: values of markers, where they differ from those of this Python and machine.

    Yields:
        A line for each requirement that no pin meets.
    """
    todo = [("the project", line, "") for line in wanted] + [("a lock", Requirement(name), "") for name in pins]
    done = set()
    while todo:
        source, requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if not applies(requirement, {**environment, "extra": extra}):
            continue
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True):
            yield f"{source} requires {requirement}; the locks have {pins.get(name, 'none')}"
            continue
        for part in {"", *requirement.extras}:
            if (name, part) not in done:
                done.add((name, part))
                todo += [(f"{name} {pins[name]}", Requirement(line), part) for line in find_requirements(name)]


def find_requirements(name: str) -> list[str]:
    """The requirements of an installed package; none where it is not installed, as on another Python."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def find_strangers(pins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each pinned package that is not installed in its version."""
    for name, pin in pins.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found != pin:
            yield f"{name} {pin} is pinned; installed is {found}"


if __name__ == "__main__":
    pinned = read_pins(map(Path, sys.argv[1:]), {})
    problems = [*find_strangers(pinned), *find_gaps(pinned, read_project(), {})]
    sys.exit("\n".join(f"ERROR: {problem}" for problem in problems) or 0)
