"""Rules for pods: what they name is there, what they may do is little, what they need is said."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from .manifest_model import Document, Manifests, Pod, Problem, at, listed, place
from .manifest_values import quantity

_TMP = "/tmp"  # noqa: S108  where Ray and our temporary files lie in a container
_CACHES = ("CODEBOOKS_TRAIN_CACHE_GIB", "CODEBOOKS_READER_CACHE_GIB")
_CACHE_SHARE = Decimal("0.75")  # the rest is for Ray's logs, spilled objects and half-written parts
_GIB = Decimal(2**30)


def references(manifests: Manifests) -> Iterator[Problem]:
    """Volumes, ConfigMaps and their keys, Secrets, accounts and claims that a pod names are there."""
    for pod in manifests.pods():
        account = pod.spec.get("serviceAccountName")
        if account not in {None, "default"} and not manifests.has("ServiceAccount", pod.namespace, account):
            yield Problem(pod.where, f"serviceAccountName {account!r} is not here")
        volumes = {volume.get("name") for volume in listed(pod.spec, "volumes")}
        for volume in listed(pod.spec, "volumes"):
            for source, path, kind in (
                ("configMap", "name", "ConfigMap"),
                ("secret", "secretName", "Secret"),
                ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
            ):
                if source in volume:
                    named = volume[source] or {}
                    keys = [item.get("key") for item in listed(named, "items")]
                    yield from _named(
                        manifests, pod, kind, named.get(path), keys, f"{pod.where} volume {volume.get('name')}"
                    )
        for where, container in pod.containers():
            for mount in listed(container, "volumeMounts"):
                if mount.get("name") not in volumes:
                    yield Problem(where, f"mounts the volume {mount.get('name')!r}, which the pod does not have")
            yield from _environment(manifests, pod, container, where)


def _environment(manifests: Manifests, pod: Pod, container: Document, where: str) -> Iterator[Problem]:
    for source in listed(container, "envFrom"):
        for path, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if path in source and not at(source, f"{path}.optional"):
                yield from _named(manifests, pod, kind, at(source, f"{path}.name"), [], where)
    for variable in listed(container, "env"):
        for path, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            named = at(variable, f"valueFrom.{path}")
            if named and not named.get("optional"):
                yield from _named(manifests, pod, kind, named.get("name"), [named.get("key")], where)


def _named(
    manifests: Manifests, pod: Pod, kind: str, name: object, keys: list[object], where: str
) -> Iterator[Problem]:
    if not manifests.has(kind, pod.namespace, name):
        hint = f"; if it is made elsewhere, say --outside {kind.lower()}/{name}"
        yield Problem(where, f"names the {kind} {name!r}, which is not here{hint}")
        return
    found = manifests.find(kind, pod.namespace, name)
    held = (
        {**(found.get("data") or {}), **(found.get("stringData") or {}), **(found.get("binaryData") or {})}
        if found
        else {}
    )
    for key in keys:
        if found is not None and key not in held:
            yield Problem(
                where, f"names the key {key!r} of the {kind} {name!r}, which holds {', '.join(held) or 'none'}"
            )


def secrets_by_reference(manifests: Manifests) -> Iterator[Problem]:
    """No secret stands in a file: neither as a Secret nor as the value of a variable."""
    for where, document in manifests.of_kind("Secret"):
        if document.get("data") or document.get("stringData"):
            yield Problem(where, "holds its values; make it in the cluster and name it (--outside secret/NAME)")
    for pod in manifests.pods():
        for where, container in pod.containers():
            for variable in listed(container, "env"):
                name = str(variable.get("name"))
                secret = any(word in name.upper() for word in ("SECRET", "PASSWORD", "TOKEN", "ACCESS_KEY"))
                if secret and variable.get("value") and not str(variable["value"]).startswith("/"):
                    yield Problem(where, f"gives {name} as a value; take it from a Secret by secretKeyRef")


def least_rights(manifests: Manifests) -> Iterator[Problem]:
    """Containers run as nobody in particular, on a root that they cannot write, with no capability."""
    for pod in manifests.pods():
        shared = pod.spec.get("securityContext") or {}
        for flag in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(flag):
                yield Problem(pod.where, f"{flag} is set; leave it out")
        for volume in listed(pod.spec, "volumes"):
            if "hostPath" in volume:
                yield Problem(pod.where, f"the volume {volume.get('name')} is a hostPath; use an emptyDir or a claim")
        for where, container in pod.containers():
            own = container.get("securityContext") or {}
            both = {**shared, **own}
            wanted: list[tuple[bool, str]] = [
                (both.get("runAsNonRoot") is True, "runAsNonRoot: true"),
                (both.get("runAsUser") != 0, "runAsUser other than 0"),
                (own.get("allowPrivilegeEscalation") is False, "allowPrivilegeEscalation: false"),
                (own.get("readOnlyRootFilesystem") is True, "readOnlyRootFilesystem: true"),
                ("ALL" in (at(own, "capabilities.drop") or []), "capabilities: {drop: [ALL]}"),
                (not at(own, "capabilities.add"), "no capabilities.add"),
                (not own.get("privileged"), "not privileged"),
                (at(both, "seccompProfile.type") == "RuntimeDefault", "seccompProfile: {type: RuntimeDefault}"),
            ]
            for kept, what in wanted:
                if not kept:
                    yield Problem(where, f"securityContext wants {what}")
            if own.get("readOnlyRootFilesystem") and not _writes(container, _TMP):
                yield Problem(where, f"cannot write anywhere below {_TMP}: mount a volume there")


def _writes(container: Document, folder: str) -> bool:
    return any(
        mount.get("mountPath") == folder and not mount.get("readOnly") for mount in listed(container, "volumeMounts")
    )


def images(manifests: Manifests) -> Iterator[Problem]:
    """An image is named with a tag that does not move, or with a digest."""
    for pod in manifests.pods():
        for where, container in pod.containers():
            image = str(container.get("image", ""))
            tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield Problem(where, f"image {image!r} has no fixed tag; write name:version or name@sha256:digest")


def quantities(manifests: Manifests) -> Iterator[Problem]:
    """Quantities can be read, requests stay below limits, and every container says its memory and its disk."""
    for pod in manifests.pods():
        for where, container in pod.containers():
            limits, requests = ((at(container, f"resources.{name}") or {}) for name in ("limits", "requests"))
            read: dict[tuple[str, str], Decimal] = {}
            for kind, given in (("limits", limits), ("requests", requests)):
                for name, value in given.items():
                    try:
                        read[kind, name] = quantity(value)
                    except ValueError as error:
                        yield Problem(where, f"resources.{kind}.{name} {error}")
                        continue
                    if read[kind, name] < 0:
                        yield Problem(where, f"resources.{kind}.{name} is {value}, below 0")
            for name in requests:
                limit, asked = read.get(("limits", name)), read.get(("requests", name))
                if limit is not None and asked is not None and asked > limit:
                    yield Problem(
                        where, f"resources.requests.{name} {requests[name]} is above its limit {limits[name]}"
                    )
            wanted = ["memory", "ephemeral-storage", *(["cpu"] if pod.ray else [])]
            for name in wanted:
                if name not in limits:
                    why = "; Ray takes its number of CPUs from there" if name == "cpu" else ""
                    yield Problem(where, f"resources.limits names no {name}{why}")


def disk_fits(manifests: Manifests) -> Iterator[Problem]:
    """Volumes on the node's disk have a limit below the container's, and our caches stay below that.

    A container cannot see its limit of ephemeral storage, and one that passes it is evicted with all its work.
    """
    for pod in manifests.pods():
        sizes: dict[object, Decimal] = {}
        for volume in listed(pod.spec, "volumes"):
            if "emptyDir" not in volume:
                continue
            folder = volume["emptyDir"] or {}
            try:
                size = quantity(folder["sizeLimit"]) if "sizeLimit" in folder else None
            except ValueError as error:
                yield Problem(pod.where, f"volume {volume.get('name')} sizeLimit {error}")
                continue
            if size is None:
                yield Problem(pod.where, f"the emptyDir {volume.get('name')!r} has no sizeLimit")
            elif folder.get("medium") != "Memory":
                sizes[volume.get("name")] = size
        for where, container in pod.containers():
            yield from _disk_of(pod, container, where, sizes)


def _disk_of(pod: Pod, container: Document, where: str, sizes: dict[object, Decimal]) -> Iterator[Problem]:
    try:
        limit = quantity(at(container, "resources.limits.ephemeral-storage"))
    except ValueError:  # `quantities` has said so
        return
    mounted = sum(sizes.get(mount.get("name"), Decimal(0)) for mount in listed(container, "volumeMounts"))
    if mounted > limit:
        yield Problem(
            where, f"its emptyDirs may hold {mounted / _GIB:.1f} GiB, its ephemeral-storage {limit / _GIB:.1f}"
        )
    given = {str(variable.get("name")): variable.get("value") for variable in listed(container, "env")}
    caches = [Decimal(str(given[name])) for name in _CACHES if str(given.get(name, "")).replace(".", "", 1).isdecimal()]
    if pod.ray and _CACHES[0] not in given:
        yield Problem(where, f"does not set {_CACHES[0]}: trainings would take a share of the whole node's disk")
    if sum(caches) * _GIB > limit * _CACHE_SHARE:
        yield Problem(
            where,
            f"its caches ({', '.join(name for name in _CACHES if name in given)}) may hold {sum(caches)} GiB, more "
            f"than {_CACHE_SHARE:.0%} of its ephemeral-storage, {limit / _GIB:.1f} GiB",
        )


def started_templates(manifests: Manifests) -> Iterator[Problem]:
    """A CronJob that starts a RayJob from a template names one that is here, suspended, and may make RayJobs."""
    for pod in manifests.pods():
        for where, container in pod.containers():
            words = [*(container.get("command") or []), *(container.get("args") or [])]
            if "cluster.rayjob" not in words:
                continue
            name = words[words.index("cluster.rayjob") + 1] if words[-1] != "cluster.rayjob" else None
            found = manifests.find("RayJob", pod.namespace, name)
            if found is None:
                yield Problem(where, f"starts the RayJob {name!r}, which is not here")
            elif at(found, "spec.suspend") is not True:
                yield Problem(
                    where, f"starts {place(found)}, whose spec.suspend is not true: it would run when applied"
                )
            if not _may_create(manifests, pod):
                yield Problem(where, f"runs as {pod.spec.get('serviceAccountName')!r}, which may not create rayjobs")


def _may_create(manifests: Manifests, pod: Pod) -> bool:
    for _, binding in manifests.of_kind("RoleBinding"):
        accounts = [subject.get("name") for subject in listed(binding, "subjects")]
        role = manifests.find(str(at(binding, "roleRef.kind")), pod.namespace, at(binding, "roleRef.name"))
        if role is None or pod.spec.get("serviceAccountName") not in accounts:
            continue
        for rule in listed(role, "rules"):
            if "rayjobs" in (rule.get("resources") or []) and {"get", "create"} <= set(rule.get("verbs") or []):
                return True
    return False
