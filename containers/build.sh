#!/usr/bin/env bash
# Builds the image of this checkout, or a SIF of that image. Usage: containers/build.sh image|sif
# BASE (image only): the base image, by its digest: NAME@sha256:... TORCH: cpu or cuda (auto is cpu)
# ENGINE: docker, podman or buildah; the first of them that is installed. IMAGE: name of the image (dpo_lightning:TORCH)
# WHEELS: a folder of wheels that no index has. PIP_CONF: a pip.conf. CA_BUNDLE: certificates, at /run/secrets/ca.pem
# BUILD_FLAGS: more flags for the engine. SIF: the file to write (dpo_lightning-TORCH.sif)
# SOURCE_DATE_EPOCH: the time that image and SIF are dated with (that of the last commit)
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'build.sh: %s\n' "$*" >&2; exit 2; }

find_engine() {
  local name
  for name in docker podman buildah; do ! command -v "$name" >/dev/null || { printf '%s' "$name"; return; }; done
  die "there is no docker, podman or buildah here"
}

build_image() {
  local flags=(--file containers/Dockerfile --tag "$image" --build-arg "BASE=${BASE:-}" --build-arg "TORCH=$torch")
  local build=() more=()
  [[ ${BASE:-} =~ @sha256:[0-9a-f]{64}$ ]] ||
    die "BASE='${BASE:-}': name the base image by its digest, BASE=NAME@sha256:... (docs/containers.md tells which image)"
  flags+=(--build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' dpo_lightning/version.py)")
  flags+=(--build-arg "REVISION=$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || true)")
  [[ ! ${WHEELS:-} ]] || flags+=(--build-context "wheels=$WHEELS")
  [[ ! ${PIP_CONF:-} ]] || flags+=(--secret "id=pip.conf,src=$PIP_CONF")
  [[ ! ${CA_BUNDLE:-} ]] || flags+=(--secret "id=ca.pem,src=$CA_BUNDLE")
  case $engine in
    docker) build=(buildx build --load --provenance=false --build-arg "SOURCE_DATE_EPOCH=$epoch") ;; # provenance holds times
    *) build=(build --timestamp "$epoch" --identity-label=false) ;;
  esac
  read -ra more <<<"${BUILD_FLAGS:-}"
  "$engine" "${build[@]}" "${flags[@]}" "${more[@]}" .
}

# `apptainer build` writes a random id and the time into a SIF, whatever SOURCE_DATE_EPOCH says. So it unpacks the image
# only, and mksquashfs and `apptainer sif` make the file. The test of the definition is run on that one.
build_sif() {
  local sif tool architecture
  sif=$(realpath -m "${SIF:-dpo_lightning-$torch.sif}")
  for tool in apptainer mksquashfs; do command -v "$tool" >/dev/null || die "there is no $tool here"; done
  case $(uname -m) in x86_64) architecture=2 ;; aarch64) architecture=4 ;; *) die "a SIF for $(uname -m) was never made" ;; esac
  work=$(mktemp -d)
  trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
  case $engine in
    buildah) buildah push --quiet "$image" "docker-archive:$work/image.tar" ;;
    *) "$engine" save --output "$work/image.tar" "$image" ;;
  esac
  cp containers/dpo_lightning.def "$work"
  cd "$work" # apptainer notes the path of the archive as it is given
  apptainer build --disable-cache --notest --sandbox root dpo_lightning.def
  rm image.tar
  sed -i "s/\"org.label-schema.build-date\": *\"[^\"]*\"/\"org.label-schema.build-date\": \"$(date -u -d "@$epoch" +%FT%TZ)\"/" \
    root/.singularity.d/labels.json
  rm -rf root/.singularity.d/bootstrap_history
  env -u SOURCE_DATE_EPOCH mksquashfs root root.squashfs -quiet -no-progress -comp zstd -Xcompression-level 6 \
    -all-root -all-time "$epoch" -mkfs-time "$epoch"
  apptainer sif new new.sif
  apptainer sif add --datatype 4 --parttype 2 --partfs 1 --partarch "$architecture" --groupid 1 new.sif root.squashfs
  python3 "$OLDPWD/containers/normalize_sif.py" new.sif "$epoch"
  chmod +x new.sif
  apptainer test new.sif
  mv new.sif "$sif"
  printf 'build.sh: %s\n' "$sif"
}

[[ $# == 1 && $1 =~ ^(image|sif)$ ]] || die "usage: containers/build.sh image|sif"
engine=${ENGINE:-$(find_engine)}
torch=${TORCH:-auto}
[[ $torch != auto ]] || torch=cpu
[[ $torch =~ ^(cpu|cuda)$ ]] || die "TORCH=$torch: it is cpu or cuda"
[[ $engine =~ ^(docker|podman|buildah)$ ]] || die "ENGINE=$engine: it is docker, podman or buildah"
image=${IMAGE:-dpo_lightning:$torch}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null)} || die "this is no git checkout: set SOURCE_DATE_EPOCH"
"build_$1"
