#!/usr/bin/env bash
# A night on docker/compose.yaml by a Docker engine of its own, which touches nothing outside of a folder; as root.
#
#   tests/cluster/compose_night.sh FOLDER COMPOSE [ARCHIVE.tar ...]
#
# COMPOSE: the program of compose v2. The archives are of `podman save`, of the images cpu, reader, serve and SeaweedFS.
# The engine lives in a network and mount namespace of its own, without a way out, and ends with this script; one that
# DOCKER_HOST names is used as it is, and stays. The same night is then run without any container, by PYTHON (the
# environment of this checkout) alone on this machine, on a store of its own: both releases must be the same, digest by
# digest. What came of it is written to FOLDER/compose.json.
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
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
began=$SECONDS
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
nights_s=$((SECONDS - began))
step "the same night without a container, on one machine"
# Beside the containers in the engine's network, where the store is reached by its address.
inside=()
[ -z "$engine" ] || inside=(nsenter --net="/proc/$(cat "$FOLDER/pid")/ns/net")
cd "$ROOT"
beside() {
  "${inside[@]}" env AWS_ACCESS_KEY_ID=codebooks AWS_REGION=us-east-1 \
    AWS_SECRET_ACCESS_KEY=codebooks-secret PYTHONPATH="$ROOT" AWS_ENDPOINT_URL="http://$STORE_ADDRESS:8333" "$@"
}
STORE_ADDRESS=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(compose ps -q store)")
settings[0]=store=s3://shop/alone
beside "$PYTHON" -m jobs refresh --run 2026-11-21 --json "${settings[@]}" 2> "$FOLDER/alone.log" \
  || { tail -5 "$FOLDER/alone.log"; exit 1; }
step "digests"
beside "$PYTHON" - "$FOLDER/compose.json" "$nights_s" << 'PYTHON'
import datetime, json, subprocess, sys
from pipeline.release import read_head, read_manifest
from pipeline.storage import open_store
found = {}
for name in ("visual", "alone"):
    store = open_store(f"s3://shop/{name}")
    manifest = read_manifest(store, read_head(store, "stable").release_id)
    parts = {part.name: part.sha256 for part in manifest.parts}
    files = {role: [file.sha256 for file in manifest.files[role]] for role in ("items", "index")}
    found[name] = {"release": manifest.release_id, "model": manifest.model_id, **files, "parts": parts}
same = {key: found["visual"][key] == value for key, value in found["alone"].items()}
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
facts = {"date": datetime.date.today().isoformat(), "commit": commit, "two_calls_s": int(sys.argv[2])}
engine = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True).stdout
with open(sys.argv[1], "w") as file:
    json.dump({**facts, "engine": engine.strip(), "same_as_one_machine": same, **found}, file, indent=1)
print(json.dumps(same))
sys.exit(not all(same.values()))
PYTHON
step "the service is healthy, and answers from it"
compose up --detach --wait --wait-timeout 120 serve
compose ps --format '{{.Service}} {{.State}} {{.Health}}' serve
step "the reader's image asks the release"
docker run --rm --network visual-codebooks_codebooks --read-only --tmpfs /tmp --cap-drop ALL --memory 256m \
  --env AWS_ACCESS_KEY_ID=codebooks --env AWS_SECRET_ACCESS_KEY=codebooks-secret --env AWS_REGION=us-east-1 \
  --env AWS_ENDPOINT_URL=http://store:8333 visual-codebooks-reader:0.1.0 python -c '
from pipeline.reader import open_release
release = open_release("s3://shop/visual")
first = release.item_ids()[0]
near = [near.item_id for near in release.similar(first, k=3)]
print(release.release_id, len(release.item_ids()), near)
import json, urllib.parse, urllib.request
url = f"http://serve:8000/similar/{urllib.parse.quote(first, safe=str())}?k=3"
answer = json.load(urllib.request.urlopen(url, timeout=20))
print("serve:", answer["release_id"], [found["item_id"] for found in answer["neighbours"]])
assert answer["release_id"] == release.release_id and [found["item_id"] for found in answer["neighbours"]] == near'
step end
