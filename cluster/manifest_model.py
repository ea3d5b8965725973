"""Rendered Kubernetes files as objects and the pods inside them, whoever makes these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Document = dict[str, Any]

# What Kubernetes and the Ray operator write onto the pods that they make; the values are theirs where None stands.
_JOB_LABELS: dict[str, str | None] = {"batch.kubernetes.io/job-name": None, "job-name": None}
_RAY_LABELS: dict[str, str | None] = {
    "ray.io/is-ray-node": "yes",
    "ray.io/cluster": None,
    "ray.io/identifier": None,
    "app.kubernetes.io/created-by": "kuberay-operator",
    "app.kubernetes.io/name": "kuberay",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (kind, name, path), and what to do."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's template. labels: with those of its maker, None for any value. ray: what it is in a Ray cluster."""

    where: str
    namespace: str
    labels: Mapping[str, str | None]
    spec: Document
    ray: Literal["head", "worker"] | None = None

    def containers(self) -> Iterator[tuple[str, Document]]:
        """Yield (where, container), also of those that begin the pod."""
        for kind in ("initContainers", "containers"):
            for number, container in enumerate(listed(self.spec, kind)):
                yield f"{self.where}.{kind}[{number}] {container.get('name', '')}".rstrip(), container


@dataclass(frozen=True, slots=True)
class RayCluster:
    """The cluster inside a RayCluster, RayJob, RayCronJob or RayService. owner: the document that it stands in."""

    where: str
    owner: Document
    spec: Document

    def groups(self) -> Iterator[tuple[str, Document, Literal["head", "worker"]]]:
        """Yield (where, group, what it is)."""
        if isinstance(self.spec.get("headGroupSpec"), dict):
            yield f"{self.where}.headGroupSpec", self.spec["headGroupSpec"], "head"
        for number, group in enumerate(listed(self.spec, "workerGroupSpecs")):
            yield f"{self.where}.workerGroupSpecs[{number}]", group, "worker"


@dataclass(frozen=True, slots=True)
class Manifests:
    """All objects of a rendered file. outside: names made elsewhere, as `secret/object-store`."""

    documents: tuple[Document, ...]
    outside: frozenset[str] = field(default=frozenset())

    def of_kind(self, *kinds: str) -> Iterator[tuple[str, Document]]:
        """Yield (where, document) of these kinds."""
        for document in self.documents:
            if document.get("kind") in kinds:
                yield place(document), document

    def has(self, kind: str, namespace: str, name: object) -> bool:
        """Return whether an object is here, or was said to be elsewhere."""
        return f"{kind.lower()}/{name}" in self.outside or self.find(kind, namespace, name) is not None

    def find(self, kind: str, namespace: str, name: object) -> Document | None:
        """Return an object that is here."""
        for document in self.documents:
            own = (document.get("kind"), namespace_of(document), at(document, "metadata.name"))
            if own == (kind, namespace, name):
                return document
        return None

    def ray_clusters(self) -> Iterator[RayCluster]:
        """Yield the Ray clusters of every kind that makes one."""
        paths = {
            "RayCluster": "spec",
            "RayJob": "spec.rayClusterSpec",
            "RayCronJob": "spec.jobTemplate.rayClusterSpec",
            "RayService": "spec.rayClusterConfig",
        }
        for where, document in self.of_kind(*paths):
            path = paths[document["kind"]]
            spec = at(document, path)
            if isinstance(spec, dict):
                yield RayCluster(f"{where} {path}", document, spec)

    def pods(self) -> Iterator[Pod]:
        """Yield every pod's template."""
        paths = {
            "Pod": "",
            "Deployment": "spec.template",
            "StatefulSet": "spec.template",
            "DaemonSet": "spec.template",
            "ReplicaSet": "spec.template",
            "Job": "spec.template",
            "CronJob": "spec.jobTemplate.spec.template",
            "RayJob": "spec.submitterPodTemplate",
            "RayCronJob": "spec.jobTemplate.submitterPodTemplate",
        }
        for where, document in self.of_kind(*paths):
            path = paths[document["kind"]]
            template = at(document, path) if path else document
            if isinstance(template, dict):
                yield _pod(
                    f"{where} {path}".rstrip(), document, template, {} if path == "spec.template" else _JOB_LABELS
                )
        yield from self._argo_pods()
        for cluster in self.ray_clusters():
            for where, group, kind in cluster.groups():
                name = "headgroup" if kind == "head" else str(group.get("groupName"))
                labels = {**_RAY_LABELS, "ray.io/node-type": kind, "ray.io/group": name}
                if isinstance(group.get("template"), dict):
                    yield _pod(f"{where}.template", cluster.owner, group["template"], labels, ray=kind)

    def _argo_pods(self) -> Iterator[Pod]:
        """Yield the pods of Argo's workflows: one a template, with what the workflow says of all of them."""
        paths = {"Workflow": "spec", "WorkflowTemplate": "spec", "CronWorkflow": "spec.workflowSpec"}
        for where, document in self.of_kind(*paths):
            path = paths[document["kind"]]
            whole = at(document, path) or {}
            for number, template in enumerate(listed(whole, "templates")):
                own = {name: template[name] for name in ("serviceAccountName", "securityContext") if name in template}
                spec = {**whole, **own, "volumes": [*listed(whole, "volumes"), *listed(template, "volumes")]}
                spec["containers"] = [template[name] for name in ("container", "script") if name in template]
                if spec["containers"]:
                    yield _pod(f"{where} {path}.templates[{number}]", document, {**template, "spec": spec}, {})


def _pod(
    where: str,
    owner: Document,
    template: Document,
    made: Mapping[str, str | None],
    ray: Literal["head", "worker"] | None = None,
) -> Pod:
    labels = {**made, **(at(template, "metadata.labels") or {})}
    spec = template.get("spec")
    return Pod(f"{where}.spec", namespace_of(owner), labels, spec if isinstance(spec, dict) else {}, ray)


def place(document: Document) -> str:
    """Return how people call an object: its kind and name."""
    return f"{document.get('kind', 'object without a kind')} {at(document, 'metadata.name')}"


def namespace_of(document: Document) -> str:
    """Return an object's namespace, `default` where it names none."""
    return str(at(document, "metadata.namespace") or "default")


def at(document: Any, path: str) -> Any:
    """Return what stands at a path of names with points between them, None where it breaks off."""
    for name in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def listed(document: Any, path: str) -> list[Document]:
    """Return the objects of a list at a path, none where there is no such list."""
    found = at(document, path)
    return [member for member in found if isinstance(member, dict)] if isinstance(found, list) else []
