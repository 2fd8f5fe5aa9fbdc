#!/usr/bin/env bash
# Makes the virtual environment VENV from the hash-checked locks. Usage: requirements/install.sh VENV [extra lock ...]
# PYTHON (python3) is the Python to make it with. TORCH says which build: auto (CUDA where there is a GPU), cpu or cuda.
# What is up to date is left alone. Whatever fails or is interrupted leaves the environment that was there, also one whose
# record is lost: it is set aside before a change and put back after a failure or a signal; after a SIGKILL the next call
# puts it back.
set -euo pipefail
shopt -s dotglob nullglob

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 1 && -n $1 ]] || { printf 'usage: requirements/install.sh VENV [extra lock ...]\n' >&2; exit 2; }
case $1 in /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
shift
extra=("$@")
[[ ! -L $venv ]] || venv=$(readlink -f "$venv") # Python makes no environment at a link
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
torch=${TORCH:-auto}
py=$venv/bin/python
own=$venv/.dpo-lightning  # every file of this script in VENV begins with this
state=$own                # the hash of every lock that is installed; not there while the environment is incomplete
log=$own.log              # all that the last command said
aside=$own.previous       # the whole environment from before a change
moving=$own.moving        # the same while its parts are on the way there or back
copying=$own.copying      # the same while it is copied
job='' changing='' total=0

# Packages from elsewhere would count as installed, unchecked; these settings would install elsewhere, or something else.
# Where packages come from (indexes, find-links, certificates, proxies) stays a matter of pip's settings.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_REQUIREMENT PIP_EDITABLE
export PIP_USER=0 PIP_CONSTRAINT=/dev/null PIP_REQUIRE_HASHES=0 # set, not unset: pip.conf may have them too
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

check_python() {
  command -v "$python" >/dev/null ||
    die "there is no $python here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.12"
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    die "$python is $("$python" -V 2>&1); 3.11 to 3.14 is needed. Name another: make setup PYTHON=/path/to/python3.12"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python cannot make virtual environments: its venv module is missing (Debian, Ubuntu: apt-get install python3-venv)"
  # Where VENV is activated, python3 is its own, which is set aside: take the one that VENV was made with.
  python=$("$python" -c 'import os, sys
same = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
print(sys._base_executable if same else sys.argv[2])' "$venv" "$python")
}

has_gpu() { [[ -e /proc/driver/nvidia/version || $(nvidia-smi -L 2>/dev/null || true) == GPU* ]]; }
installed() { grep -qxF -- "$1" "$state"; }
current() { grep '\.lock$' "$state" | sha256sum --check --status 2>/dev/null; }
project() { printf 'project %s\n' "$( (pwd; cat pyproject.toml) | sha256sum | cut -d' ' -f1)"; }
torch_pin() { awk '/^torch==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$1"; }

plan() { # sets build, locks, fresh and why (made anew, and the reason), missing (a lock) and todo (anything at all)
  local lock
  build=$wanted fresh='' why='' missing='' todo=''
  if [[ -s $state ]]; then
    # The CUDA build runs without a GPU: where it was installed, it stays unless TORCH=cpu.
    [[ $torch == cpu ]] || ! grep -q ' requirements/cuda\.lock$' "$state" || build=cuda
    if ! "$py" -c '' 2>/dev/null; then
      fresh=yes why="the Python of $venv is gone: making it anew"
    elif ! current; then
      fresh=yes why="the locks have changed: making $venv anew"
    elif ! grep -q " requirements/$build\.lock$" "$state"; then
      fresh=yes why="the $build build of torch is wanted: making $venv anew"
    fi
  else
    fresh=yes
    [[ ! -e $py ]] || why="there is no record of what is in $venv: making it anew"
  fi
  locks=(requirements/pip.lock "requirements/$build.lock" "${extra[@]}")
  missing=$fresh
  for lock in "${locks[@]}"; do
    [[ -r $lock ]] || die "there is no $lock"
    [[ $missing ]] || installed "$(sha256sum "$lock")" || missing=yes
  done
  todo=$missing
  [[ $missing ]] || installed "$(project)" || todo=yes
  [[ ! -e $aside && ! -e $moving && ! -e $copying ]] || todo=yes
}

take_lock() { # two jobs of a cluster may start at once. What is started here holds the lock too, until it has ended
  mkdir -p "$venv" 2>/dev/null && { exec 9>>"$own.flock"; } 2>/dev/null || die "nothing can be written in $venv"
  command -v flock >/dev/null || return 0
  local code waited=''
  while code=0; flock -n 9 2>/dev/null || code=$?; [[ $code == 1 ]]; do
    [[ $waited ]] || say "waiting for another setup of $venv"
    waited=yes
    sleep 1
  done
  [[ $code == 0 ]] || say "there are no file locks in $venv: let no other setup of it run at the same time"
}

clear_venv() {
  local part
  rm -f "$state"
  for part in "$venv"/*; do [[ $part == "$own"* ]] || rm -rf "$part"; done
}

move_aside() {
  local part
  mkdir "$moving"
  for part in "$venv"/*; do [[ $part == "$own"* ]] || mv "$part" "$moving/"; done
  [[ ! -e $state ]] || mv "$state" "$moving/" # a record that is empty tells nothing, and the environment may work
  mv "$moving" "$aside"
}

copy_aside() { # hard links where there are any: pip makes new files and writes into none
  local part parts=()
  for part in "$venv"/*; do [[ $part == "$own"* ]] || parts+=("$part"); done
  parts+=("$state")
  mkdir "$copying"
  cp -al "${parts[@]}" "$copying/" 2>/dev/null || { rm -rf "$copying"; mkdir "$copying"; cp -a "${parts[@]}" "$copying/"; }
  mv "$copying" "$aside"
  rm "$state"
}

put_back() { # can be killed and called again at any point
  local part
  if [[ -e $aside ]]; then
    clear_venv
    mv "$aside" "$moving"
  fi
  for part in "$moving"/*; do mv "$part" "$venv/"; done
  rmdir "$moving"
  say "$venv is again what it was before"
}

recover() { # from a SIGKILL
  rm -rf "$copying"
  if [[ -e $aside && -s $state ]]; then # that change was complete
    rm -rf "$aside"
  elif [[ -e $aside || -e $moving ]]; then
    say "an earlier setup was interrupted"
    put_back
  fi
}

begin_change() {
  changing=yes
  if [[ ! -s $state ]] && ! "$py" -c '' 2>/dev/null; then
    changing=cleared
    clear_venv
  elif [[ $fresh ]]; then
    move_aside
  else
    copy_aside
  fi
}

end_change() { # end_change LOCK ...
  { sha256sum "$@"; project; } >"$own.new"
  sync "$own.new" 2>/dev/null || true # or a power failure could leave an empty record
  mv "$own.new" "$state" # from here on the new environment counts
  changing=
  rm -rf "$aside"
}

undo() { # at every exit
  local code=$? signal
  trap '' INT TERM HUP
  for signal in INT KILL; do # pip removes its temporary files at the first
    [[ $job ]] && kill -s "$signal" -- "-$job" 2>/dev/null || break
    for _ in {1..100}; do kill -0 -- "-$job" 2>/dev/null && sleep 0.1 || break; done
  done
  if [[ ! $changing ]]; then
    :
  elif [[ -e $aside || -e $moving ]]; then
    put_back
  elif [[ $changing == cleared ]]; then
    clear_venv
  else # nothing was changed yet
    rm -rf "$copying"
  fi
  exit "$code"
}

progress() {
  local line
  line=$(grep -E '^(Collecting|Processing|Installing collected) ' "$log" 2>/dev/null | tail -n 1 || true)
  case $line in
    '') return 0 ;;
    Installing*) line=unpacking ;;
    *) line=${line#* } line=${line%% *} line="$(grep -cE '^(Collecting|Processing) ' "$log") of $total: ${line##*/}" ;;
  esac
  printf '\r\e[K  %s' "$line"
}

run() { # run COMMAND ...: what it says goes to the log. Its process group is its own, so that undo can end all of it
  local code=0
  set -m
  "$@" >"$log" 2>&1 &
  job=$!
  set +m
  while [[ -t 1 ]] && kill -0 "$job" 2>/dev/null; do progress; sleep 0.3; done
  [[ ! -t 1 ]] || printf '\r\e[K'
  wait "$job" || code=$?
  job=
  return "$code"
}

# Nothing is resolved: a lock is complete, and pip looks for nothing that is not in it.
pip_install() { run "$py" -m pip install --progress-bar off --no-deps --require-hashes --only-binary :all: "$@"; }

fail() { # fail WHAT: the error itself, without the list of what went well
  if grep -q '^ERROR' "$log"; then sed -n '/^ERROR/,$p' "$log"; else tail -n 30 "$log"; fi | head -n 30 >&2
  ! grep -q 'from versions: none' "$log" || say "pip sees no version at all: is a package index within reach?" >&2
  ! grep -qiE 'no space left|quota exceeded' "$log" ||
    say "the disk is full, or the one with temporary files (TMPDIR). The environment from before stays until the new one is complete: where both do not fit, delete $venv first" >&2
  die "could not install $1. Nothing unchecked was installed. All that was said is in $log"
}

# The only thing that may be missing from a package index is torch's CPU wheel: it is tried by itself, and whatever else
# goes wrong later is an error.
cpu_torch() {
  say "fetching the CPU build of torch"
  total=1
  pip_install -r <(torch_pin requirements/cpu.lock) && return 0
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

install_locks() {
  local lock arguments=()
  # What an earlier call added stays listed, and is installed again.
  for lock in "${done_before[@]}"; do [[ " ${locks[*]} " == *" $lock "* ]] || locks+=("$lock"); done
  if [[ $fresh ]]; then
    say "making $venv with $("$python" -V 2>&1)"
    run "$python" -m venv "$venv" || fail "Python's own part"
  fi
  # Python brings a pip of its own age, whose only task is this one.
  [[ " ${done_before[*]} " == *" requirements/pip.lock "* ]] || pip_install --force-reinstall -r requirements/pip.lock || fail "pip"
  if [[ $fresh && $build == cpu ]] && ! cpu_torch; then locks[1]=requirements/cuda.lock; fi
  for lock in "${locks[@]}"; do arguments+=(-r "$lock"); done
  total=$(cat "${locks[@]}" | grep -c '^[a-z0-9].*==')
  say "installing $total packages, each checked against its hash ($(basename -a "${locks[@]}" | paste -sd ' '))"
  pip_install "${arguments[@]}" || fail "the packages"
}

case $torch in
  cpu | cuda) wanted=$torch ;;
  auto) if has_gpu; then wanted=cuda; else wanted=cpu; fi ;;
  *) die "TORCH=$torch: it is auto, cpu or cuda" ;;
esac

plan
[[ $todo ]] || exit 0 # without a write: the environment may be read-only
ours=("$own"*) parts=("$venv"/*)
((${#ours[@]} || ! ${#parts[@]})) ||
  die "$venv was not made by this script: delete it, or name another: make setup VENV=path"

trap undo EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
take_lock
recover
plan
[[ $todo ]] || exit 0
[[ ! $why ]] || say "$why"
[[ ! $fresh ]] || check_python
mapfile -t done_before < <([[ ! -s $state ]] || sed -nE 's/^[0-9a-f]{64}  (.*\.lock)$/\1/p' "$state")
if [[ $fresh ]]; then done_before=(); fi
[[ $missing ]] || locks=("${done_before[@]}")

begin_change
[[ ! $missing ]] || install_locks
say "installing this project"
# The build backend is in the locks: nothing is fetched.
run "$py" -m pip install --no-deps --no-build-isolation --no-index -e . || fail "this project"
run "$py" requirements/check.py "${locks[@]}" || fail "all that is required: the locks lack something for this Python"
end_change "${locks[@]}"
say "$venv is ready"
