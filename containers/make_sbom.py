"""Writes what an image consists of: `sbom.cdx.json` (CycloneDX 1.6) and `licenses.tsv`, from the metadata in it.

Usage: python containers/make_sbom.py FOLDER, with the image's own Python.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

OSI = "License :: OSI Approved :: "
LONGEST = 100
"""Characters of a licence's name; some packages put the whole text in its place."""


class Package(NamedTuple):
    """A package of an image."""

    name: str
    version: str
    license: str
    purl: str
    """Package URL: the name by which databases of vulnerabilities know it."""


def find_license(distribution: Distribution) -> str:
    """The licence that a Python package declares: an SPDX expression, a name, or its classifiers."""
    metadata = distribution.metadata
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License :: ")]
    named = metadata.get("License-Expression") or metadata.get("License") or ""
    if named and len(named) <= LONGEST and "\n" not in named:
        return named
    return "; ".join(line.removeprefix(OSI).removeprefix("License :: ") for line in classifiers) or "not declared"


def list_python_packages() -> Iterator[Package]:
    """Yield what is installed beside this Python."""
    for found in distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        purl = f"pkg:pypi/{name}@{quote(found.version)}"
        yield Package(name, found.version, find_license(found), purl)


def list_debian_packages() -> Iterator[Package]:
    """Yield what dpkg has installed; a licence is what the copyright file lists, if it is machine-readable."""
    vendor = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE))[
        "ID"
    ]
    fields = r"${Package}\t${Version}\t${Architecture}\n"
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat", fields], check=True, capture_output=True, text=True
    )
    for line in listed.stdout.splitlines():
        name, version, architecture = line.split("\t")
        path = Path("/usr/share/doc", name, "copyright")
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        names = sorted(set(re.findall(r"^License: *(\S.*?) *$", text, re.MULTILINE))) if "Format:" in text[:500] else []
        purl = f"pkg:deb/{vendor}/{name}@{quote(version)}?arch={architecture}"
        yield Package(name, version, "; ".join(names) or f"see {path}", purl)


def write(folder: Path) -> None:
    """Write both files, in the same order each time and without a date."""
    packages = sorted({*list_python_packages(), *list_debian_packages()}, key=lambda package: package.purl)
    components = [
        {
            "type": "library",
            "bom-ref": package.purl,
            "name": package.name,
            "version": package.version,
            "licenses": [{"license": {"name": package.license}}],
            "purl": package.purl,
        }
        for package in packages
    ]
    sbom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sbom.cdx.json").write_text(json.dumps(sbom, indent=1) + "\n", encoding="utf-8")
    lines = ["\t".join(package) for package in packages]
    (folder / "licenses.tsv").write_text("\n".join(["name\tversion\tlicense\tpurl", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
