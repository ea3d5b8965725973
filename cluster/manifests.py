"""Check rendered Kubernetes files before a cluster sees them: `python -m cluster.manifests rendered.yaml`.

Kubernetes' and the operator's schemas pass a schedule that never comes, a policy misspelt and a name that is not
there; what they pass, the rules here refuse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml

from pipeline.errors import CodebooksError, ConfigError, InputError

from . import manifest_rules_objects, manifest_rules_pods, manifest_rules_ray
from .manifest_model import Document, Manifests, Problem
from .manifest_schemas import core_problems, custom_problems, load_crds

Rule = Callable[[Manifests], Iterator[Problem]]

RULES: tuple[Rule, ...] = (
    manifest_rules_objects.words,
    manifest_rules_objects.names,
    manifest_rules_objects.schedules,
    manifest_rules_objects.workflow_schedules,
    manifest_rules_objects.job_failures,
    manifest_rules_objects.selectors,
    manifest_rules_objects.disruption_budgets,
    manifest_rules_objects.rights,
    manifest_rules_pods.references,
    manifest_rules_pods.secrets_by_reference,
    manifest_rules_pods.least_rights,
    manifest_rules_pods.images,
    manifest_rules_pods.quantities,
    manifest_rules_pods.disk_fits,
    manifest_rules_pods.started_templates,
    manifest_rules_ray.ray_jobs,
    manifest_rules_ray.ray_clusters,
    manifest_rules_ray.ray_services,
)


def read_documents(text: str, name: str) -> tuple[Document, ...]:
    """Return the objects of a rendered file. Raises InputError for what is no YAML or holds none."""
    try:
        found = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {error}") from error
    for document in found:
        if not isinstance(document, dict):
            raise InputError(f"{name} holds {document!r} where an object of Kubernetes should stand")
    if not found:
        raise InputError(f"{name} holds no object; render it first, with `kubectl kustomize OVERLAY > {name}`")
    return tuple(found)


def check(documents: Sequence[Document], *, outside: Sequence[str] = ()) -> list[tuple[str, Problem]]:
    """Return (rule, problem) of everything that our own rules refuse. outside: names made elsewhere."""
    manifests = Manifests(tuple(documents), frozenset(name.lower() for name in outside))
    return [(rule.__name__, problem) for rule in RULES for problem in rule(manifests)]


def main(argv: Sequence[str] | None = None) -> int:
    """Check the objects of all files together; return 0 where all is well, 2 where not, 3 where unreadable."""
    parser = argparse.ArgumentParser(prog="python -m cluster.manifests", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="what `kubectl kustomize` printed; - for standard input")
    parser.add_argument(
        "--crds",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="CustomResourceDefinitions of operators",
    )
    parser.add_argument("--kubernetes", metavar="VERSION", help="check Kubernetes' own kinds by its schemas, as 1.32")
    parser.add_argument(
        "--outside", action="append", default=[], metavar="KIND/NAME", help="made elsewhere, as secret/object-store"
    )
    given = parser.parse_args(argv)
    try:
        documents: list[Document] = []
        for file in given.files:
            text = sys.stdin.read() if str(file) == "-" else file.read_text()
            documents += read_documents(text, str(file))
        found = check(documents, outside=given.outside)
        if given.crds:
            crds = {name: schema for folder in given.crds for name, schema in load_crds(folder).items()}
            found += [("operator's schema", each) for each in custom_problems(documents, crds)]
        if given.kubernetes is not None:
            found += [("Kubernetes' schema", each) for each in core_problems(documents, given.kubernetes)]
    except CodebooksError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"cannot read {error.filename}: {error.strerror}\n")
        return InputError.exit_code
    for rule, problem in found:
        sys.stdout.write(f"{problem} ({rule})\n")
    left_out = [name for name, value in (("--crds", given.crds), ("--kubernetes", given.kubernetes)) if not value]
    note = f"; not looked at without {' and '.join(left_out)}: schemas" if left_out else ""
    sys.stdout.write(f"{len(documents)} objects, {len(RULES)} rules: {len(found) or 'no'} problems{note}\n")
    return ConfigError.exit_code if found else 0


if __name__ == "__main__":
    sys.exit(main())
