"""Pods that our Kubernetes files describe, run by podman: cut out of the rendered files, local images put in.

    kubectl kustomize cluster/kubernetes/overlays/aws > rendered.yaml
    python tests/cluster/pod_templates.py rendered.yaml --images localhost/visual-codebooks --json FILE

Needs root, podman, runc, SeaweedFS (faulty_store.py) and the images NAME-cpu, NAME-reader and NAME-serve with their
version as tag. Every pod runs with its own securityContext, limits and volumes; what a node here cannot give (GPUs, a
node's CPUs, the account's files, the operator's command) is replaced, and said so in the result. Pods share this
machine's network: run it by `unshare -n` where that matters. What asks the store, `serve` and `expire`, finds one with
the address of the files' shop.yaml and a release on it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime as dt
import json
import platform
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from released_store import Released, answered

from cluster.manifest_model import Pod
from cluster.manifests import Manifests, read_documents
from cluster.rayjob import RUN_LABEL, TEMPLATE_LABEL

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MARK = "== "
# Run inside of a Ray container in place of the operator's `ray start`: it is who it should be, writes where it should
# alone, has our caches' limits, and a Ray node with its probe comes up in a login shell, as the operator starts one.
PROBE = """
echo "== id $(id -u):$(id -g)"
touch /x 2>/dev/null && echo "== root written" || echo "== root read-only"
touch /tmp/x && echo "== tmp written"
grep -q 'CapEff:.*0000000000000000' /proc/self/status && echo "== no capabilities"
grep -q 'NoNewPrivs:.*1' /proc/self/status && echo "== no new privileges"
echo "== caches $CODEBOOKS_TRAIN_CACHE_GIB $CODEBOOKS_READER_CACHE_GIB $XDG_CACHE_HOME"
if [ -r /etc/codebooks/shop.yaml ]; then echo "== config $(head -c 6 /etc/codebooks/shop.yaml)"; fi
ray start --head --num-cpus=0 --disable-usage-stats > /tmp/ray.log 2>&1 || cat /tmp/ray.log
probe() { wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz 2> /dev/null | grep -q success; }
for n in $(seq 60); do probe && break; sleep 1; done
probe && echo "== raylet answers its probe"
codebooks --version > /tmp/v && echo "== $(cat /tmp/v)"
ray stop > /dev/null 2>&1
echo "== end"
"""


def main() -> int:
    """Run the pods and write what they said; 0 when each said all that it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rendered", type=Path)
    parser.add_argument("--images", default="localhost/visual-codebooks", help="local images, before -cpu:VERSION")
    parser.add_argument("--only", default="", help="only pods whose place has this in it")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    manifests = Manifests(read_documents(given.rendered.read_text(), str(given.rendered)))
    results = []
    with tempfile.TemporaryDirectory(prefix="pods-store-") as folder, contextlib.ExitStack() as stack:
        store = Released(Path(folder), manifests, stack)
        for pod in manifests.pods():
            if given.only in pod.where and "gpu:" not in str(pod.spec["containers"][0]["image"]):
                results.append(ran(manifests, pod, given.images, store))
                sys.stdout.write(json.dumps(results[-1]) + "\n")
                sys.stdout.flush()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    facts = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": platform.platform(),
        "commit": commit.strip(),
    }
    if given.json is not None:
        given.json.write_text(json.dumps({**facts, "pods": results}, indent=1) + "\n")
    return 0 if all(result["right"] for result in results) else 1


def ran(manifests: Manifests, pod: Pod, images: str, store: Released) -> dict[str, Any]:
    """Run one pod to its end and compare what it said."""
    with tempfile.TemporaryDirectory(prefix="pods-") as folder:
        if pod.spec["containers"][0]["name"] == "serve":
            return _service(manifests, pod, images, Path(folder), store)
        if pod.spec["containers"][0]["name"] == "expire":
            return _expiry(manifests, pod, images, Path(folder), store)
        if pod.ray is not None or "submitter" in str(pod.spec["containers"][0]["name"]):
            return _ray_pod(manifests, pod, images, Path(folder))
        return _starter(manifests, pod, images, Path(folder))


def _ray_pod(manifests: Manifests, pod: Pod, images: str, folder: Path) -> dict[str, Any]:
    spec, replaced = localised(manifests, pod, images)
    script = PROBE if pod.ray else PROBE.split("ray start")[0] + MARKED_END
    # Podman 4.3 writes what it has read anew, wrongly where a text begins with an empty line.
    spec["containers"][0]["command"] = ["/bin/bash", "-lc", script.strip()]
    code, said, seconds = played(manifests, pod, spec, folder)
    wanted = list(LOCKED)
    if pod.ray:
        caches = [value["value"] for value in pod.spec["containers"][0]["env"] if value["name"].endswith("_CACHE_GIB")]
        wanted += [f"caches {' '.join(caches)} /tmp/cache", "raylet answers its probe", "visual-codebooks 0.1.0"]
    if pod.ray == "head":
        wanted.append("config store:")
    missing = [words for words in [*wanted, "end"] if f"{MARK}{words}" not in said]
    right = code == 0 and not missing
    result = {"pod": pod.where, "right": right, "missing": missing, "replaced": replaced, "seconds": seconds}
    return result if right else {**result, "said": said[-3000:]}


LOCKED = ("id 1000:1000", "root read-only", "tmp written", "no capabilities", "no new privileges")
MARKED_END = "\necho '== end'\n"


def _starter(manifests: Manifests, pod: Pod, images: str, folder: Path) -> dict[str, Any]:
    """Run the pod of a CronJob against an API on this machine; its first RayJob ends with 6, its second is done."""
    spec, replaced = localised(manifests, pod, images)
    certificate(folder)
    made: list[dict[str, Any]] = []
    server = served(manifests, folder, made)
    account = {"token": "t1", "namespace": pod.namespace, "ca.crt": (folder / "cert.pem").read_text()}
    container = spec["containers"][0]
    spec["volumes"].append({"name": "account", "configMap": {"name": "account"}})
    container["volumeMounts"].append({"name": "account", "mountPath": ACCOUNT})
    container["env"] = [
        {"name": "JOB_NAME", "value": "refresh-29400150"},
        {"name": "JOB_UID", "value": "b1"},
        *(value for value in container["env"] if "valueFrom" not in value),
        {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
        {"name": "KUBERNETES_SERVICE_PORT", "value": str(server.server_port)},
    ]
    replaced = [*replaced, "the API server, by one that knows RayJobs only", "fieldRefs, by their values"]
    more = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "account"}, "data": account}]
    codes, said, seconds = [], "", 0.0
    for _ in range(2):  # as the Job would start a second pod after 6
        code, text, took = played(manifests, pod, spec, folder, more=more)
        codes.append(code)
        said, seconds = said + text, seconds + took
    server.shutdown()
    names = [job["metadata"]["name"] for job in made]
    template = spec["containers"][0]["command"][-1]
    right = codes == [6, 0] and names == [f"{template}-2025-11-24-1", f"{template}-2025-11-24-2"]
    right = right and all("--run" in job["spec"]["entrypoint"] and not job["spec"]["suspend"] for job in made)
    result = {"pod": pod.where, "right": right, "codes": codes, "made": names, "replaced": replaced, "seconds": seconds}
    return result if right else {**result, "said": said[-3000:]}


def _service(manifests: Manifests, pod: Pod, images: str, folder: Path, store: Released) -> dict[str, Any]:
    """Run the service until its probes are answered, ask it for neighbours, and stop it as a node that is drained."""
    spec, replaced = store.told(*localised(manifests, pod, images))
    container = spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {}
    for name in ("livenessProbe", "readinessProbe"):  # podman would ask systemd to call them
        asked = container.pop(name)["httpGet"]
        probes[name] = f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}"
    container["ports"] = []  # the network is this machine's
    started = time.monotonic()
    begun = play(manifests, pod, spec, folder)
    answers = {name: answered(url, 90) for name, url in probes.items()}
    ready_s = round(time.monotonic() - started, 1)
    found = answered(probes["readinessProbe"].rpartition("/")[0] + f"/similar/{store.item}?k=3", 10) or {}
    script = PROBE.split("ray start")[0] + MARKED_END
    inside = _podman("exec", "tried-serve", "sh", "-c", script).stdout
    _podman("stop", "-t", str(spec["terminationGracePeriodSeconds"]), "tried-serve")
    code = int(_podman("wait", "tried-serve").stdout or -1)
    said = _podman("logs", "tried-serve")
    _podman("pod", "rm", "-f", "-t", "0", "tried")
    missing = [words for words in LOCKED if f"{MARK}{words}" not in inside]
    right = begun.returncode == 0 and all(answers.values()) and len(found.get("neighbours", [])) == 3
    right = right and code == 0 and not missing
    result = {
        "pod": pod.where,
        "right": right,
        "missing": missing,
        "replaced": replaced,
        "ready_s": ready_s,
        "code": code,
    }
    text = begun.stdout + begun.stderr + said.stdout + said.stderr + inside
    return result if right else {**result, "code": code, "answers": answers, "found": found, "said": text[-3000:]}


def _expiry(manifests: Manifests, pod: Pod, images: str, folder: Path, store: Released) -> dict[str, Any]:
    """Run the daily expiry on a store of one release, of which everything is needed."""
    spec, replaced = store.told(*localised(manifests, pod, images))
    code, said, seconds = played(manifests, pod, spec, folder)
    answer = next((json.loads(line) for line in said.splitlines() if line.startswith("{")), {})
    right = code == 0 and "reason" in answer
    result = {"pod": pod.where, "right": right, "code": code, "replaced": replaced, "seconds": seconds}
    return {**result, "reason": answer.get("reason")} if right else {**result, "said": said[-3000:]}


def localised(manifests: Manifests, pod: Pod, images: str) -> tuple[dict[str, Any], list[str]]:
    """Return a pod's spec as this machine can run it, and what was replaced."""
    spec: dict[str, Any] = copy.deepcopy(pod.spec)
    spec["restartPolicy"] = "Never"
    replaced = ["image"]
    for name in ("serviceAccountName", "nodeSelector", "tolerations", "automountServiceAccountToken"):
        if spec.pop(name, None) is not None:
            replaced.append(name)
    for container in spec["containers"]:
        image = container["image"].rpartition("/")[2]
        container["image"] = f"{images.rpartition('/')[0]}/{image}"
        for kind in ("limits", "requests"):
            resources = container["resources"][kind]
            resources.pop("ephemeral-storage", None)  # podman does not know it
            if float(str(resources.get("cpu", "1")).removesuffix("m")) > 1:
                resources["cpu"] = "1"
        container["env"] = [
            *(value for value in container.get("env", []) if "secretKeyRef" not in value.get("valueFrom", {})),
        ]
        for source in container.pop("envFrom", []):
            found = manifests.find("ConfigMap", pod.namespace, source["configMapRef"]["name"])
            container["env"] += [{"name": name, "value": str(value)} for name, value in (found or {})["data"].items()]
            replaced.append("envFrom, by its values")
    replaced += ["ephemeral-storage", "cpu to 1"]
    return spec, replaced


def played(
    manifests: Manifests, pod: Pod, spec: dict[str, Any], folder: Path, more: list[dict[str, Any]] | None = None
) -> tuple[int, str, float]:
    """Run a pod to its end; return its exit code, what it said, and its seconds."""
    started = time.monotonic()
    done = play(manifests, pod, spec, folder, more)
    if done.returncode:
        return done.returncode, done.stdout + done.stderr, time.monotonic() - started
    name = f"tried-{spec['containers'][0]['name']}"
    code = _podman("wait", name).stdout.strip()
    took = round(time.monotonic() - started, 1)
    said = _podman("logs", name)
    _podman("pod", "rm", "-f", "-t", "0", "tried")
    return int(code or -1), said.stdout + said.stderr, took


def play(
    manifests: Manifests, pod: Pod, spec: dict[str, Any], folder: Path, more: list[dict[str, Any]] | None = None
) -> subprocess.CompletedProcess[str]:
    """Start a pod by `podman play kube`, with the ConfigMaps that it mounts."""
    metadata = {"name": "tried", "labels": {str(name): str(value) for name, value in pod.labels.items() if value}}
    configs = []
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            found = manifests.find("ConfigMap", pod.namespace, volume["configMap"]["name"])
            configs += [{**found, "metadata": {"name": found["metadata"]["name"]}}] if found else []
    documents = [*configs, *(more or []), {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]
    (folder / "pod.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    _podman("pod", "rm", "-f", "-t", "0", "tried")
    return _podman("play", "kube", "--network", "host", str(folder / "pod.yaml"))


def _podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", "--runtime", "runc", *words], capture_output=True, text=True, timeout=200)


def certificate(folder: Path) -> None:
    """Make a certificate of 127.0.0.1 that nobody else vouches for."""
    names = ["-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(command, check=True, capture_output=True)


def served(manifests: Manifests, folder: Path, made: list[dict[str, Any]]) -> ThreadingHTTPServer:
    """Serve RayJobs over https: the templates of the files, and those that a pod makes, which end with 6, then well."""
    ends = [
        {
            "jobDeploymentStatus": "Failed",
            "jobStatus": "FAILED",
            "message": "Job entrypoint failed with exit code 6, x",
        },
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
    ]

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = path.partition("/rayjobs")[2].strip("/")
            if query:
                wanted = {TEMPLATE_LABEL, RUN_LABEL}
                return self.say(200, {"items": [job for job in made if wanted <= job["metadata"]["labels"].keys()]})
            everything = [*made, *(document for _, document in manifests.of_kind("RayJob"))]
            found = next((job for job in everything if job["metadata"]["name"] == name), None)
            return self.say(200, found) if found else self.say(404, {})

        def do_POST(self) -> None:
            value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.append({**value, "status": ends[len(made)]})
            self.say(201, value)

        def say(self, code: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    sys.exit(main())
