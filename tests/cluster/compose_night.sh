#!/usr/bin/env bash
# A night on docker/compose.yaml by a Docker engine of its own, which touches nothing outside of a folder; as root.
#
#   tests/cluster/compose_night.sh FOLDER COMPOSE [ARCHIVE.tar ...]
#
# COMPOSE: the program of compose v2. The archives are of `podman save`, of the images cpu, reader and SeaweedFS. The
# engine lives in a network and mount namespace of its own, without a way out, and ends with this script; one that
# DOCKER_HOST names is used as it is, and stays.
set -euo pipefail
FOLDER=$(realpath "$1"); COMPOSE=$2; shift 2
ROOT=$(realpath "$(dirname "$0")/../..")
mkdir -p "$FOLDER"
engine=
if [ -z "${DOCKER_HOST:-}" ]; then
  export DOCKER_HOST=unix://$FOLDER/docker.sock
  unshare -n -m bash -c '
    ip link set lo up; mount --make-rprivate /
    exec dockerd --data-root "$0/data" --exec-root "$0/exec" -H "unix://$0/docker.sock" -p "$0/pid" \
      --default-ulimit nofile=16384:16384 > "$0/dockerd.log" 2>&1' "$FOLDER" &
  engine=$!
fi
compose() { "$COMPOSE" -f "$ROOT/docker/compose.yaml" "$@"; }
finish() {
  compose down --volumes --timeout 5 > /dev/null 2>&1 || true
  if [ -n "$engine" ]; then
    kill "$(cat "$FOLDER/pid" 2> /dev/null || echo "$engine")" 2> /dev/null || true
    wait "$engine" 2> /dev/null || true
  fi
}
trap finish EXIT
for _ in $(seq 60); do docker version > /dev/null 2>&1 && break; sleep 1; done

step() { echo "== $(date +%T) $*"; }
step load
for archive in "$@"; do docker load --quiet --input "$archive"; done
for image in $(docker images --format '{{.Repository}}:{{.Tag}}' | grep '^localhost/'); do
  docker tag "$image" "${image#localhost/}"
done
export STORE_IMAGE=${STORE_IMAGE:-seaweedfs:4.48}
step up
compose up --detach --scale worker=2 --wait --wait-timeout 240 head worker
compose ps --format '{{.Service}} {{.State}} {{.Health}}'
step "a catalogue on the store"
compose exec -T head python - << 'PYTHON'
import s3fs
from pathlib import Path
from pipeline.images.render import render_catalogue
render_catalogue(Path("/tmp/catalogue"), items=60, seed=0)
s3fs.S3FileSystem().put("/tmp/catalogue", "shop/catalogue", recursive=True)
PYTHON
settings=(store=s3://shop/visual catalogue.source=s3://shop/catalogue/catalogue.csv catalogue.item_id=item_id
  catalogue.image=image catalogue.category=category images.size=32 model.kind=vae train.epochs=1 encode.actors=2)
step doctor
compose exec -T -e RAY_ADDRESS=auto head codebooks doctor "${settings[@]}" || true
step "a night, then the same name again"
for _ in 1 2; do
  compose exec -T -e RAY_ADDRESS=auto head codebooks refresh --run 2026-11-21 --json "${settings[@]}" 2> "$FOLDER/night.log" \
    || { tail -5 "$FOLDER/night.log"; exit 1; }
done
step "the reader's image asks the release"
docker run --rm --network visual-codebooks_codebooks --read-only --tmpfs /tmp --cap-drop ALL --memory 256m \
  --env AWS_ACCESS_KEY_ID=codebooks --env AWS_SECRET_ACCESS_KEY=codebooks-secret --env AWS_REGION=us-east-1 \
  --env AWS_ENDPOINT_URL=http://store:8333 visual-codebooks-reader:0.1.0 python -c '
from pipeline.reader import open_release
release = open_release("s3://shop/visual")
first = release.item_ids()[0]
print(release.release_id, len(release.item_ids()), [near.item_id for near in release.similar(first, k=3)])'
step end
