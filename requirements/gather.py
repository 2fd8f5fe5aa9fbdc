"""Gathers the wheels that a machine without network needs beside the packages it has, in parts below a size.

On that machine: `python -m pip list --format=freeze > packages.txt`. Here, in the environment of the project:
`python requirements/gather.py packages.txt --python 3.12 --below 60 --add trl`. There, with the parts:
`python -m pip install --no-index --no-deps wheels/part-*/*.whl`. torch is never gathered: it has to be there.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from check import applies, canonicalize_name, find_requirements, read_pins, read_project
from packaging.requirements import Requirement

HERE = Path(__file__).parent
LOCKS = [HERE / "cpu.lock", HERE / "test.lock"]
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
"""Kinds of wheels that a Linux of 2018 or later takes, without the processor."""

MB = 10**6


def read_packages(text: str) -> dict[str, str]:
    """Read name -> version from lines such as `pip list --format=freeze` prints; a bare name has no version."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    parts = (re.split(r"==| @ ", line, maxsplit=1) for line in lines if line and not line.startswith("-"))
    return {canonicalize_name(name): version[0] if version else "" for name, *version in parts}


def find_missing(
    there: Mapping[str, str], wanted: Iterable[Requirement], environment: Mapping[str, str]
) -> Iterator[str]:
    """Follow requirements by the metadata of what is installed here, and yield each package that does not meet one.

    Args:
        there: package -> version on the other machine.
        wanted: requirements to begin with.
        environment: values of markers on the other machine.
    """
    todo, done, found = [(line, "") for line in wanted], set(), set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if name == "torch" or not applies(requirement, {**environment, "extra": extra}):
            continue
        version = there.get(name)
        fits = version is not None and (not version or requirement.specifier.contains(version, prereleases=True))
        if not fits and name not in found:
            found.add(name)
            yield name
        for part in {"", *requirement.extras}:
            # A package that is there has what it requires; its extras may have been left out.
            if (name, part) not in done and not (fits and not part):
                done.add((name, part))
                todo += [(Requirement(line), part) for line in find_requirements(name)]


def download(pins: Mapping[str, str], python: str, machine: str, folder: Path) -> None:
    """Download wheels, checked against the hashes of the locks."""
    entries = {}
    for lock in LOCKS:
        for entry in re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8")):
            entries[canonicalize_name(re.split("==", entry)[0])] = re.sub(r"(?m)^ *#.*\n?", "", entry)
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(entries[name] for name in pins) + "\n", encoding="utf-8")
    platforms = [word for kind in PLATFORMS for word in ("--platform", f"{kind}_{machine}")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary"]
    command += [":all:", "--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run([*command, "-r", str(requirements), "--dest", str(folder)], check=True)
    requirements.unlink()


def divide(wheels: Iterable[Path], limit: int) -> list[list[Path]]:
    """Divide files into parts of at most `limit` bytes, largest first; a larger file is a part by itself."""
    parts: list[tuple[int, list[Path]]] = []
    for wheel in sorted(wheels, key=lambda path: (-path.stat().st_size, path.name)):
        size = wheel.stat().st_size
        place = next((k for k, (total, _) in enumerate(parts) if total + size <= limit), None)
        if place is None:
            parts.append((size, [wheel]))
        else:
            parts[place] = (parts[place][0] + size, [*parts[place][1], wheel])
    return [files for _, files in parts]


def main() -> None:
    """Find out what is missing, download it, and divide it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="what the other machine has: name==version, or names, a line each")
    parser.add_argument("--python", default="3.12", help="its Python")
    parser.add_argument("--machine", default="x86_64", choices=("x86_64", "aarch64"), help="its processor")
    parser.add_argument("--below", type=int, default=60, metavar="MB", help="size of a part")
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME", help="packages of test.lock, such as trl")
    parser.add_argument("--out", type=Path, default=Path("wheels"), help="folder for the parts, which must not exist")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already")
    environment = {
        "python_version": options.python,
        "python_full_version": f"{options.python}.0",
        "platform_machine": options.machine,
    }
    pins = read_pins(LOCKS, environment)
    unknown = {canonicalize_name(name) for name in options.add} - set(pins)
    if unknown:
        parser.error(f"no lock has {', '.join(sorted(unknown))}")
    there = read_packages(options.packages.read_text(encoding="utf-8"))
    wanted = [*read_project(), *map(Requirement, options.add)]
    missing = {name: pins[name] for name in sorted(find_missing(there, wanted, environment))}
    if not missing:
        print("nothing is missing")
        return
    options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        download(missing, options.python, options.machine, Path(folder))
        for number, files in enumerate(divide(Path(folder).iterdir(), options.below * MB), start=1):
            part = options.out / f"part-{number}"
            part.mkdir()
            size = sum(file.stat().st_size for file in files) / MB
            print(f"{part}, {size:.1f} MB: {', '.join(sorted(file.name.partition('-')[0] for file in files))}")
            for file in files:
                file.rename(part / file.name)


if __name__ == "__main__":
    main()
