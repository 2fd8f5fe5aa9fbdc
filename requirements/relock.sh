#!/usr/bin/env bash
# Writes cpu.lock, cuda.lock and test.lock anew from pyproject.toml, and pip.lock. Usage: requirements/relock.sh [--upgrade]
# Pins that still fit are kept; --upgrade takes the newest versions. Where packages come from is a matter of your pip and
# uv settings, and is written nowhere.
set -euo pipefail
cd "$(dirname "$0")/.."

uv_version=0.13.9 # fixed, so that the same index gives the same bytes
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
say() { printf 'lock: %s\n' "$*"; }

compile() { # compile SOURCE OUTPUT [flag ...]; what stands in OUTPUT already is kept where it fits
  "$tmp/venv/bin/uv" pip compile "$1" --quiet --universal --python-version 3.11 --fork-strategy fewest \
    --only-binary :all: --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
    "${@:3}" -o "$tmp/$2" >/dev/null
}

say "installing uv $uv_version"
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"

# One resolution for everything, so that the three locks agree.
say "resolving"
cat requirements/cuda.lock requirements/test.lock >"$tmp/all" 2>/dev/null || true
compile pyproject.toml all --all-extras "$@"
cp "$tmp/all" "$tmp/cuda"
compile pyproject.toml cuda
grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' "$tmp/cuda" >"$tmp/gpu-only"
cp "$tmp/all" "$tmp/cpu"
compile pyproject.toml cpu --excludes "$tmp/gpu-only"
cp requirements/pip.lock "$tmp/pip" 2>/dev/null || true
compile - pip "$@" <<<pip

# uv reads hashes from an index, and the public one has CUDA builds of torch only. pip takes the CPU wheel from wherever
# it is set up to look; its hash joins those that are listed for the version already (other Pythons, other machines).
torch=$(sed -nE 's/^torch==([^ ]+).*/\1/p' "$tmp/cuda")
say "fetching the CPU wheel of torch $torch for its hash"
if "$tmp/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$tmp/wheel" "torch==$torch+cpu"; then
  sha256sum "$tmp"/wheel/*.whl | cut -d' ' -f1 >"$tmp/torch-hashes"
else
  say "there is none for this Python here: keeping the hashes that are listed"
  : >"$tmp/torch-hashes"
fi

"$tmp/venv/bin/python" - "$tmp" "$torch" <<'PYTHON'
import re
import sys
from pathlib import Path

tmp, torch, out = Path(sys.argv[1]), sys.argv[2] + "+cpu", Path("requirements")
# The whole environment of the locks says nothing where it is a package's only condition, and would make pip skip
# everything, without a word, on a Python that is too new.
EVERYWHERE = re.compile(r" ; python_full_version < '[\d.]+' and sys_platform == 'linux'(?= \\$)", re.M)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def packages(path):
    """Name -> the lines of that package."""
    text = EVERYWHERE.sub("", path.read_text()).replace("    #   -c (workspace)\n", "") if path.exists() else ""
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    found = {block.split("==")[0]: block for block in blocks}
    if len(found) < len(blocks):
        sys.exit(f"lock: {path.name} has a package in two versions, by marker")
    return found


everything, cuda, cpu, pip = (packages(tmp / name) for name in ("all", "cuda", "cpu", "pip"))
old = packages(out / "cpu.lock").get("torch", "")
hashes = set((tmp / "torch-hashes").read_text().split())
hashes |= set(HASH.findall(old)) if old.startswith(f"torch=={torch} ") else set()
if not hashes:
    sys.exit(f"lock: no hash is known for torch {torch}")
_, via = cpu["torch"].split("    # via", 1)
pins = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes))
test = {name: block for name, block in everything.items() if name not in cuda}
for name, block in cpu.items():
    if name != "torch" and not block.startswith(cuda[name].split(" ")[0]):
        sys.exit(f"lock: {name} differs between cpu and cuda")
cpu["torch"] = f"torch=={torch}{pins}\n    # via{via}"
for name, blocks in (("cpu", cpu), ("cuda", cuda), ("test", test), ("pip", pip)):
    text = "".join(blocks.values())
    if "://" in text or re.search(r"^\s*-[^-]|^--", text, re.M):
        sys.exit(f"lock: {name}.lock would name a package host")
    (out / f"{name}.lock").write_text(text)
    print(f"lock: requirements/{name}.lock has {len(blocks)} packages")
PYTHON

# Only what differs from the locks above: the test puts it in front of the environment's own packages.
cp requirements/transformers4.lock "$tmp/transformers4"
printf '%s\n' 'huggingface-hub<1' 'tokenizers<=0.23' 'transformers>=4.57,<5' |
  "$tmp/venv/bin/uv" pip compile - --quiet --universal --python-version 3.11 --no-deps --only-binary :all: \
    --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@" -o "$tmp/transformers4" >/dev/null
sed -E "s/ ; python_full_version < '[0-9.]+' and sys_platform == 'linux'//" "$tmp/transformers4" >requirements/transformers4.lock
