"""The rules of the Ray operator (KubeRay 1.7) that its schema does not hold: it looks at them when it is too late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from .manifest_model import Document, Manifests, Problem, RayCluster, at, listed
from .manifest_values import label_name_problem

_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_LEAST_RAY_FOR_TOKENS = (2, 52)


def ray_jobs(manifests: Manifests) -> Iterator[Problem]:
    """What the operator asks of a RayJob, and that it ends and cleans up."""
    for where, job in _jobs(manifests):
        for text in [*_job_shape(job), *_job_times(job), *_job_modes(job), *_deletion(job)]:
            yield Problem(where, text)


def ray_services(manifests: Manifests) -> Iterator[Problem]:
    """What Ray Serve asks of a RayService's own text, which the operator hands on unread."""
    for where, document in manifests.of_kind("RayService"):
        for text in _serve_config(at(document, "spec.serveConfigV2")):
            yield Problem(f"{where} spec.serveConfigV2", text)


def _serve_config(text: object) -> Iterator[str]:
    try:
        config = yaml.safe_load(str(text or ""))
    except yaml.YAMLError as error:
        yield f"is no YAML: {error}"
        return
    served = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(served, list) or not served:
        yield "names no applications; nothing would be served"
        return
    if at(config, "http_options.host") in (None, "127.0.0.1", "localhost"):
        yield "http_options.host is not 0.0.0.0: no Service reaches a proxy that listens on loopback"
    for each in served:
        module, colon, name = str(each.get("import_path") or "").partition(":")
        if not (module and colon and name):
            yield f"import_path is {each.get('import_path')!r}; write MODULE:NAME"
        for deployment in each.get("deployments") or []:
            if "user_config" in deployment:
                yield "user_config is set: a replica that it reconfigures takes no requests meanwhile"


def _jobs(manifests: Manifests) -> Iterator[tuple[str, Document]]:
    for where, document in manifests.of_kind("RayJob"):
        yield where, document.get("spec") or {}
    for where, document in manifests.of_kind("RayCronJob"):
        yield f"{where} spec.jobTemplate", at(document, "spec.jobTemplate") or {}


def _job_shape(job: Document) -> Iterator[str]:
    selector, own = bool(job.get("clusterSelector")), job.get("rayClusterSpec") is not None
    if selector == own:
        yield "needs exactly one of rayClusterSpec and clusterSelector"
    if selector and not at(job, "clusterSelector").get("ray.io/cluster"):
        yield "clusterSelector names no ray.io/cluster"
    if not str(job.get("entrypoint") or "").strip() and job.get("submissionMode") != "InteractiveMode":
        yield "has no entrypoint"
    if job.get("managedBy") not in {None, *_MANAGERS}:
        yield f"managedBy is {job['managedBy']!r}; allowed: {', '.join(_MANAGERS)}"
    try:
        environment = yaml.safe_load(job.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML is no YAML: {error}"
    else:
        if not isinstance(environment, dict):
            yield f"runtimeEnvYAML holds {type(environment).__name__}, it must be names and values"
    if at(job, "rayClusterSpec.authOptions.mode") == "k8s-token":
        yield "authOptions.mode k8s-token is not for a RayJob; use token"


def _job_times(job: Document) -> Iterator[str]:
    whole, start = job.get("activeDeadlineSeconds"), job.get("preRunningDeadlineSeconds")
    for name, value in (("activeDeadlineSeconds", whole), ("preRunningDeadlineSeconds", start)):
        if not _whole(value, least=1):
            yield f"{name} is {value!r}; give a number of seconds above 0, or a stuck job waits for ever"
    if isinstance(whole, int) and isinstance(start, int) and start >= whole > 0:
        yield f"preRunningDeadlineSeconds {start} is not below activeDeadlineSeconds {whole}"
    for name in ("ttlSecondsAfterFinished", "backoffLimit"):
        if name in job and not _whole(job[name], least=0):
            yield f"{name} is {job[name]!r}; it is a whole number from 0 on"
    shut = job.get("shutdownAfterJobFinishes") is True
    if _whole(job.get("ttlSecondsAfterFinished"), least=1) and not shut:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if job.get("suspend") and not shut:
        yield "suspend needs shutdownAfterJobFinishes: true"
    if not shut and not job.get("deletionStrategy") and not job.get("clusterSelector"):
        yield "neither shutdownAfterJobFinishes nor deletionStrategy: its cluster would stay, GPUs and all"


def _job_modes(job: Document) -> Iterator[str]:
    mode, retries = job.get("submissionMode"), job.get("backoffLimit")
    selector = bool(job.get("clusterSelector"))
    retried = _whole(retries, least=1)
    if selector and retried:
        yield f"backoffLimit is {retries}: with clusterSelector it must be 0"
    if selector and job.get("suspend"):
        yield "suspend does not go with clusterSelector"
    if mode == "InteractiveMode" and retried:
        yield f"backoffLimit is {retries}: in InteractiveMode it must be 0"
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if job.get(name):
                yield f"SidecarMode does not go with {name}"
        policy = at(job, "rayClusterSpec.headGroupSpec.template.spec.restartPolicy")
        if policy not in (None, "Never"):
            yield f"SidecarMode needs the head's restartPolicy Never, it is {policy}"
    if mode in ("HTTPMode", "InteractiveMode") and job.get("submitterPodTemplate"):
        yield f"{mode} makes no submitter; leave out submitterPodTemplate"
    if at(job, "submitterPodTemplate.spec.restartPolicy") == "Always":
        yield "submitterPodTemplate needs restartPolicy Never or OnFailure"


def _deletion(job: Document) -> Iterator[str]:
    strategy = job.get("deletionStrategy")
    if not strategy:
        return
    rules, old = listed(strategy, "deletionRules"), [name for name in ("onSuccess", "onFailure") if strategy.get(name)]
    if rules and job.get("shutdownAfterJobFinishes"):
        yield "deletionStrategy.deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and old:
        yield f"deletionStrategy has both deletionRules and {' and '.join(old)}"
    if not rules and len(old) != 2:
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"
    for number, rule in enumerate(rules):
        condition = rule.get("condition") or {}
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield f"deletionRules[{number}].condition needs exactly one of jobStatus and jobDeploymentStatus"


def ray_clusters(manifests: Manifests) -> Iterator[Problem]:
    """What the operator asks of a Ray cluster."""
    for cluster in manifests.ray_clusters():
        for where, group, kind in cluster.groups():
            for text in _group(cluster, group):
                yield Problem(where, text)
            if kind == "worker":
                for text in _worker_group(cluster, group):
                    yield Problem(where, text)
        for text in _cluster(cluster):
            yield Problem(cluster.where, text)


def _cluster(cluster: RayCluster) -> Iterator[str]:
    spec = cluster.spec
    names = [group.get("groupName") for group in listed(spec, "workerGroupSpecs")]
    for name in {name for name in names if names.count(name) > 1}:
        yield f"two worker groups are called {name!r}"
    if not isinstance(spec.get("headGroupSpec"), dict):
        yield "has no headGroupSpec"
    version = str(spec.get("rayVersion") or "")
    if not version:
        yield "names no rayVersion; the operator chooses by it"
    elif at(spec, "authOptions.mode") == "token":
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
        if len(numbers) < 2 or numbers < _LEAST_RAY_FOR_TOKENS:
            yield f"authOptions.mode token needs rayVersion 2.52.0 or newer, it is {version}"
    environment = _environment(spec.get("headGroupSpec") or {})
    scaling = bool(spec.get("enableInTreeAutoscaling"))
    if not scaling and environment.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling: true"
    if scaling and at(spec, "autoscalerOptions.version") and "RAY_enable_autoscaler_v2" in environment:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set; keep the former"
    annotations = at(cluster.owner, "metadata.annotations") or {}
    tolerant = spec.get("gcsFaultToleranceOptions")
    if tolerant and annotations.get("ray.io/ft-enabled"):
        yield "gcsFaultToleranceOptions and the annotation ray.io/ft-enabled are both set; keep the former"
    for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if name in environment and (tolerant or name != "REDIS_PASSWORD"):
            yield f"the head's {name} belongs into gcsFaultToleranceOptions"


def _group(cluster: RayCluster, group: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    for name, value in parameters.items():
        if not isinstance(value, str):
            yield f"rayStartParams.{name} is {value!r}; every value there is a text, write {str(value).lower()!r}"
    if "labels" in parameters:
        yield "rayStartParams.labels is refused; use the group's own labels"
    if group.get("resources") and any(parameters.get(name) for name in _RESOURCES):
        yield f"has resources and rayStartParams of {', '.join(_RESOURCES)}; give them in one place"
    if not listed(group, "template.spec.containers"):
        yield "has no container"
    policy = at(group, "template.spec.restartPolicy")
    second = at(cluster.spec, "autoscalerOptions.version") == "v2"
    if second and cluster.spec.get("enableInTreeAutoscaling") and policy not in (None, "Never"):
        yield f"restartPolicy is {policy}; under autoscaler v2 it is Never"


def _worker_group(cluster: RayCluster, group: Document) -> Iterator[str]:
    if problem := label_name_problem(group.get("groupName"), letter_first=True):
        yield f"groupName {problem}"
    least, now, most = (group.get(name) for name in ("minReplicas", "replicas", "maxReplicas"))
    scaling = bool(cluster.spec.get("enableInTreeAutoscaling"))
    numbers = [number for number in (least, now, most) if number is not None]
    if not all(_whole(number, least=0) for number in numbers):
        yield f"replicas are {least}, {now}, {most}; they are whole numbers from 0 on"
    elif numbers != sorted(numbers):
        yield f"minReplicas <= replicas <= maxReplicas does not hold for {least}, {now}, {most}"
    elif not scaling and (now or 0) == 0:
        yield "has no replicas and enableInTreeAutoscaling is off: it would stay empty"
    if scaling and most is None:
        yield "names no maxReplicas; the autoscaler would know no end"
    if scaling and group.get("suspend"):
        yield "suspend does not go with enableInTreeAutoscaling"


def _environment(group: Document) -> dict[str, Any]:
    containers = listed(group, "template.spec.containers")
    given = listed(containers[0], "env") if containers else []
    return {str(variable.get("name")): variable.get("value", "") for variable in given}


def _whole(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
