"""Rules for objects beside pods: words of fixed lists, schedules, selectors, names that must be there, rights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .manifest_model import Document, Manifests, Pod, Problem, at, listed, namespace_of, place
from .manifest_values import cron_problem, label_name_problem, time_zone_problem

# Words that the published schemas leave open, by the name of their field; found at any depth, as a pod stands in many.
_WORDS: dict[str, tuple[str, ...]] = {
    "concurrencyPolicy": ("Allow", "Forbid", "Replace"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "unhealthyPodEvictionPolicy": ("IfHealthyBudget", "AlwaysAllow"),
    "completionMode": ("NonIndexed", "Indexed"),
    "podReplacementPolicy": ("TerminatingOrFailed", "Failed"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "preemptionPolicy": ("PreemptLowerPriority", "Never"),
    "whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    "medium": ("", "Memory", "HugePages"),
}
# Names that mean different things in different places, with the name that they stand below.
_WORDS_BELOW: dict[tuple[str, str], tuple[str, ...]] = {
    ("seccompProfile", "type"): ("RuntimeDefault", "Localhost", "Unconfined"),
    ("tolerations", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("tolerations", "operator"): ("Exists", "Equal"),
    ("onExitCodes", "operator"): ("In", "NotIn"),
    ("rules", "action"): ("FailJob", "FailIndex", "Ignore", "Count"),
    ("matchExpressions", "operator"): ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    ("upgradeStrategy", "type"): ("None", "NewCluster", "NewClusterWithIncrementalUpgrade"),
    ("authOptions", "mode"): ("disabled", "token"),
    ("autoscalerOptions", "version"): ("v1", "v2"),
}
_LISTS: dict[str, tuple[str, ...]] = {
    "policyTypes": ("Ingress", "Egress"),
    "accessModes": ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
}
_VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
_FREE = {"data", "stringData", "annotations", "labels", "matchLabels", "nodeSelector", "rayStartParams", "binaryData"}
_PDB_ONE = ("minAvailable", "maxUnavailable")


def words(manifests: Manifests) -> Iterator[Problem]:
    """Every word of a fixed list is one of that list."""
    for document in manifests.documents:
        yield from _words_in(document, place(document), above="")


def _words_in(value: Any, where: str, above: str) -> Iterator[Problem]:
    if isinstance(value, list):
        for member in value:
            yield from _words_in(member, where, above)
    if not isinstance(value, dict):
        return
    for name, member in value.items():
        if name in _FREE:
            continue
        allowed = _WORDS_BELOW.get((above, name), _WORDS.get(name))
        if allowed is not None and isinstance(member, str) and member not in allowed:
            yield Problem(where, f"{name} is {member!r}; allowed: {', '.join(word for word in allowed if word)}")
        for word in member if isinstance(member, list) and name in _LISTS else ():
            if word not in _LISTS[name]:
                yield Problem(where, f"{name} holds {word!r}; allowed: {', '.join(_LISTS[name])}")
        yield from _words_in(member, where, name)


def names(manifests: Manifests) -> Iterator[Problem]:
    """Every object has a name that its kind may have, and nothing has it twice."""
    seen: set[tuple[object, ...]] = set()
    for document in manifests.documents:
        kind, name = str(document.get("kind")), at(document, "metadata.name")
        if name is None:
            yield Problem(place(document), "has no metadata.name")
            continue
        ray = kind.startswith("Ray")
        # A CronJob's Jobs have 11 characters more, the Ray operator's clusters and services up to 16.
        most = 47 if ray else 52 if kind == "CronJob" else 253 if kind in ("ConfigMap", "Secret") else 63
        if not kind.startswith(("Role", "ClusterRole")) and (
            problem := label_name_problem(name, most=most, letter_first=ray)
        ):
            yield Problem(place(document), f"metadata.name {problem}")
        own = (document.get("apiVersion"), kind, namespace_of(document), name)
        if own in seen:
            yield Problem(place(document), f"is there twice in the namespace {namespace_of(document)!r}")
        seen.add(own)


def schedules(manifests: Manifests) -> Iterator[Problem]:
    """Schedules and time zones mean something, and a missed night is still begun."""
    for where, document in manifests.of_kind("CronJob", "RayCronJob"):
        if problem := cron_problem(at(document, "spec.schedule")):
            yield Problem(where, f"spec.schedule {problem}")
        zone = at(document, "spec.timeZone")
        if zone is None:
            yield Problem(where, "names no spec.timeZone: the hour would be that of the control plane's machine")
        elif problem := time_zone_problem(zone):
            yield Problem(where, f"spec.timeZone {problem}")
        if document["kind"] == "RayCronJob":
            yield Problem(
                where,
                "is alpha, and without the operator's feature gate nothing happens; use a CronJob that makes a RayJob",
            )
            continue
        late = at(document, "spec.startingDeadlineSeconds")
        if isinstance(late, int) and late < 10:
            yield Problem(
                where, f"spec.startingDeadlineSeconds is {late}; the controller looks every 10 s, so below 10 never"
            )
        if at(document, "spec.concurrencyPolicy") != "Forbid":
            yield Problem(
                where, "spec.concurrencyPolicy is not Forbid: a night longer than a day would meet the next one"
            )


def workflow_schedules(manifests: Manifests) -> Iterator[Problem]:
    """The same for Argo, whose words are others, and whose runs end some day."""
    for where, document in manifests.of_kind("CronWorkflow"):
        times = at(document, "spec.schedules") or [at(document, "spec.schedule")]
        for schedule in times:
            if problem := cron_problem(schedule):
                yield Problem(where, f"spec.schedules {problem}")
        if problem := time_zone_problem(at(document, "spec.timezone")):
            yield Problem(where, f"spec.timezone {problem}")
        if at(document, "spec.concurrencyPolicy") != "Forbid":
            yield Problem(
                where, "spec.concurrencyPolicy is not Forbid: a night longer than a day would meet the next one"
            )
        whole = at(document, "spec.workflowSpec") or {}
        if not isinstance(whole.get("activeDeadlineSeconds"), int):
            yield Problem(where, "workflowSpec.activeDeadlineSeconds is missing: a stuck night would wait for ever")
        named = {template.get("name") for template in listed(whole, "templates")}
        if whole.get("entrypoint") not in named:
            yield Problem(
                where, f"entrypoint {whole.get('entrypoint')!r} is none of its templates {sorted(map(str, named))}"
            )


def job_failures(manifests: Manifests) -> Iterator[Problem]:
    """A Job ends some day, and a policy on exit codes is one that the API server takes."""
    paths = {"CronJob": "spec.jobTemplate.spec", "Job": "spec"}
    for where, document in manifests.of_kind(*paths):
        job = at(document, paths[document["kind"]]) or {}
        deadline = job.get("activeDeadlineSeconds")
        if not isinstance(deadline, int) or deadline <= 0:
            yield Problem(
                where, f"activeDeadlineSeconds is {deadline!r}; give the seconds after which a night is given up"
            )
        pod = at(job, "template.spec") or {}
        if "podFailurePolicy" in job and pod.get("restartPolicy") != "Never":
            yield Problem(where, "podFailurePolicy needs restartPolicy: Never")
        containers = {container.get("name") for _, container in Pod(where, "", {}, pod).containers()}
        for rule in listed(job, "podFailurePolicy.rules"):
            codes = rule.get("onExitCodes") or {}
            values = codes.get("values", [])
            if codes and (
                not values or values != sorted(set(values)) or (codes.get("operator") == "In" and 0 in values)
            ):
                yield Problem(where, f"onExitCodes.values {values} must be ascending, each once, and without 0 for In")
            if codes.get("containerName") not in {None, *containers}:
                yield Problem(where, f"onExitCodes names the container {codes['containerName']!r}, which is not there")


def selectors(manifests: Manifests) -> Iterator[Problem]:
    """What selects pods finds some, and a Deployment its own."""
    pods = list(manifests.pods())
    for where, document in manifests.of_kind("Service", "PodDisruptionBudget", "NetworkPolicy"):
        path = {"Service": "spec.selector", "NetworkPolicy": "spec.podSelector"}.get(document["kind"], "spec.selector")
        selector = at(document, path)
        if document["kind"] == "Service":
            selector = {"matchLabels": selector} if selector else None
        if selector is None:
            continue
        if not any(pod.namespace == namespace_of(document) and _selects(selector, pod) for pod in pods):
            yield Problem(where, f"{path} {selector} finds none of the pods here")
    for where, document in manifests.of_kind("Deployment", "StatefulSet", "DaemonSet"):
        selector = at(document, "spec.selector") or {}
        labels = at(document, "spec.template.metadata.labels") or {}
        if not _selects(selector, Pod(where, "", labels, {})):
            yield Problem(where, f"spec.selector {selector} does not find its own template's labels {labels}")
    for where, document in manifests.of_kind("NetworkPolicy"):
        for way in ("ingress", "egress"):
            for rule in listed(document, f"spec.{way}"):
                for peer in [*listed(rule, "from"), *listed(rule, "to")]:
                    ours = "podSelector" in peer and "namespaceSelector" not in peer
                    if ours and not any(_selects(peer["podSelector"] or {}, pod) for pod in pods):
                        yield Problem(where, f"{way} names {peer['podSelector']}, which finds none of the pods here")


def _selects(selector: Document, pod: Pod) -> bool:
    for name, value in (selector.get("matchLabels") or {}).items():
        if name not in pod.labels or pod.labels[name] not in (None, value):
            return False
    for expression in listed(selector, "matchExpressions"):
        name, values = expression.get("key"), expression.get("values") or []
        there = name in pod.labels
        fits = there and (pod.labels[str(name)] is None or pod.labels[str(name)] in values)
        wanted = {"In": fits, "NotIn": not fits, "Exists": there, "DoesNotExist": not there}
        if not wanted.get(str(expression.get("operator")), True):
            return False
    return True


def disruption_budgets(manifests: Manifests) -> Iterator[Problem]:
    """A budget says one thing, and over pods of a custom resource only what the eviction can count."""
    pods = list(manifests.pods())
    for where, document in manifests.of_kind("PodDisruptionBudget"):
        given = [name for name in _PDB_ONE if at(document, f"spec.{name}") is not None]
        if len(given) != 1:
            yield Problem(where, f"gives {' and '.join(given) or 'neither'}; give one of {' and '.join(_PDB_ONE)}")
        selector = at(document, "spec.selector") or {}
        least = at(document, "spec.minAvailable")
        for pod in pods:
            if pod.ray and _selects(selector, pod) and (isinstance(least, bool) or not isinstance(least, int)):
                yield Problem(
                    where,
                    f"selects {pod.where}, which a custom resource makes: only minAvailable as a whole number is "
                    "counted there",
                )


def rights(manifests: Manifests) -> Iterator[Problem]:
    """Roles name verbs that exist and no wildcard; bindings name roles and accounts that are there."""
    for where, document in manifests.of_kind("Role", "ClusterRole"):
        for rule in listed(document, "rules"):
            for name in ("verbs", "resources", "apiGroups"):
                if "*" in (rule.get(name) or []):
                    yield Problem(where, f"{name} holds '*'; name what is needed")
            for verb in rule.get("verbs") or []:
                if verb not in _VERBS | {"*"}:
                    yield Problem(where, f"{verb!r} is no verb; allowed: {', '.join(sorted(_VERBS))}")
    for where, document in manifests.of_kind("RoleBinding"):
        role = document.get("roleRef") or {}
        if not manifests.has(str(role.get("kind")), namespace_of(document), role.get("name")):
            yield Problem(where, f"roleRef names {role.get('kind')} {role.get('name')!r}, which is not here")
        for subject in listed(document, "subjects"):
            namespace = str(subject.get("namespace") or namespace_of(document))
            if subject.get("kind") == "ServiceAccount" and not manifests.has(
                "ServiceAccount", namespace, subject.get("name")
            ):
                yield Problem(where, f"binds ServiceAccount {namespace}/{subject.get('name')}, which is not here")
