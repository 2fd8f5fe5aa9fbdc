#!/usr/bin/env bash
# Makes the virtual environment VENV from the hash-checked locks. Usage: requirements/install.sh VENV [extra lock ...]
# PYTHON (python3) is the Python to make it with. TORCH says which build: auto (CUDA where there is a GPU), cpu or cuda.
# What is up to date is left alone. An install that was interrupted, or whose locks have changed, is made anew.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 1 && -n $1 ]] || { printf 'usage: requirements/install.sh VENV [extra lock ...]\n' >&2; exit 2; }
case $1 in /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
shift
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
torch=${TORCH:-auto}
py=$venv/bin/python
state=$venv/.dpo-lightning     # empty while work is going on; then the hash of every lock that is installed
log=$venv/.dpo-lightning.log   # all that pip said

# Packages from elsewhere would count as installed, unchecked; these settings would install elsewhere.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_CONSTRAINT
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

check_python() {
  command -v "$python" >/dev/null ||
    die "there is no $python here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.12"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    die "$python is $("$python" -V 2>&1); 3.11 to 3.14 is needed. Name another: make setup PYTHON=/path/to/python3.12"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python cannot make virtual environments: its venv module is missing (Debian, Ubuntu: apt-get install python3-venv)"
}

has_gpu() { [[ -e /proc/driver/nvidia/version || $(nvidia-smi -L 2>/dev/null || true) == GPU* ]]; }
installed() { grep -qxF -- "$1" "$state"; }
current() { grep '\.lock$' "$state" | sha256sum --check --status 2>/dev/null; }
project() { printf 'project %s\n' "$( (pwd; cat pyproject.toml) | sha256sum | cut -d' ' -f1)"; }
torch_pin() { awk '/^torch==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$1"; }

pip_install() { # pip_install PACKAGES [pip argument ...]: a line of progress on a terminal, everything in the log
  local total=$1 count=0 line
  shift
  : >"$log"
  "$py" -m pip install --progress-bar off --require-hashes --only-binary :all: "$@" 2>&1 |
    while IFS= read -r line; do
      printf '%s\n' "$line" >>"$log"
      [[ -t 1 ]] || continue
      case $line in
        "Collecting "* | "Processing "*)
          count=$((count + 1)) line=${line#* } line=${line%% *}
          printf '\r\e[K  %d of %d: %s' "$count" "$total" "${line##*/}"
          ;;
        "Installing collected"*) printf '\r\e[K  unpacking' ;;
      esac
    done || { [[ ! -t 1 ]] || printf '\r\e[K'; return 1; }
  [[ ! -t 1 ]] || printf '\r\e[K'
}

fail() { # pip's own error, without the list of what went well
  sed -n '/^ERROR/,$p' "$log" | head -n 30 >&2
  ! grep -q 'from versions: none' "$log" || say "pip sees no version at all: is a package index within reach?" >&2
  die "pip could not install $1. Nothing unchecked was installed. All that pip said is in $log"
}

# The only thing that may be missing from a package index is torch's CPU wheel: it is tried by itself, and whatever else
# goes wrong later is an error.
cpu_torch() {
  say "fetching the CPU build of torch"
  pip_install 1 --no-deps -r /dev/stdin < <(torch_pin requirements/cpu.lock) && return 0
  [[ $torch == auto ]] || fail "the CPU build of torch"
  if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
    say "the CPU wheel of torch on offer has a hash that cpu.lock does not list: installing cuda.lock, which runs without a GPU too (several GB)"
  elif grep -q 'from versions: [^n]' "$log"; then # "none" is no network, or no torch at all: cuda.lock would fail as well
    say "no CPU wheel of torch is on offer for this Python: installing cuda.lock, which runs without a GPU too (several GB)"
  else
    fail "the CPU build of torch"
  fi
  return 1
}

case $torch in
  cpu | cuda) build=$torch ;;
  auto) if has_gpu; then build=cuda; else build=cpu; fi ;;
  *) die "TORCH=$torch: it is auto, cpu or cuda" ;;
esac

[[ -e $state || ! -d $venv || -z $(ls -A "$venv") ]] ||
  die "$venv was not made by this script: delete it, or name another: make setup VENV=path"
mkdir -p "$venv"
exec 9>>"$state"
if command -v flock >/dev/null && ! flock -n 9; then # two jobs of a cluster may start at once
  say "waiting for another setup of $venv"
  flock 9 || true # not every shared file system has locks
fi

# The CUDA build runs without a GPU: where it was installed, it stays unless TORCH=cpu.
[[ $torch == cpu ]] || ! grep -q ' requirements/cuda\.lock$' "$state" || build=cuda

fresh=
if [[ ! -s $state ]]; then
  fresh=yes
  [[ ! -e $py ]] || say "an earlier install was interrupted: starting over"
elif ! "$py" -c '' 2>/dev/null; then
  fresh=yes
  say "the Python of $venv is gone: making it anew"
elif ! current; then
  fresh=yes
  say "the locks have changed: making $venv anew"
elif ! grep -q " requirements/$build\.lock$" "$state"; then
  fresh=yes
  say "the $build build of torch is wanted: making $venv anew"
fi

locks=("requirements/$build.lock" "$@")
missing=$fresh
for lock in "${locks[@]}"; do
  [[ -r $lock ]] || die "there is no $lock"
  installed "$(sha256sum "$lock")" || missing=yes
done

if [[ $missing ]]; then
  # What an earlier call added stays listed, and is installed again.
  mapfile -t done_before < <(sed -nE 's/^[0-9a-f]{64}  (.*\.lock)$/\1/p' "$state")
  [[ ! $fresh ]] || check_python
  : >"$state"
  if [[ $fresh ]]; then
    find "$venv" -mindepth 1 -maxdepth 1 ! -name '.dpo-lightning*' -exec rm -rf {} +
    say "making $venv with $("$python" -V 2>&1)"
    "$python" -m venv "$venv"
    done_before=()
    if [[ $build == cpu ]] && ! cpu_torch; then
      build=cuda
      locks[0]=requirements/cuda.lock
    fi
  fi
  for lock in "${done_before[@]}"; do
    [[ " ${locks[*]} " == *" $lock "* ]] || locks+=("$lock")
  done
  arguments=()
  for lock in "${locks[@]}"; do arguments+=(-r "$lock"); done
  total=$(cat "${locks[@]}" | grep -c '^[a-z0-9].*==')
  say "installing $total packages, each checked against its hash ($(basename -a "${locks[@]}" | paste -sd ' '))"
  pip_install "$total" "${arguments[@]}" || fail "the packages"
fi

if [[ $missing ]] || ! installed "$(project)"; then
  say "installing this project"
  # The build backend is in the locks: nothing is fetched.
  "$py" -m pip install --quiet --no-deps --no-build-isolation --no-index -e . >"$log" 2>&1 || { cat "$log" >&2; die "the project could not be installed"; }
  if [[ $missing ]]; then listed=$(sha256sum "${locks[@]}"); else listed=$(grep '\.lock$' "$state"); fi
  { printf '%s\n' "$listed"; project; } >"$state" # in place: the lock is held on this file
  say "$venv is ready"
fi
