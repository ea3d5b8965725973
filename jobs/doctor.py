"""Check this machine, the store, the config and the catalogue, and say what is wrong and how to mend it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.command import Arguments, Outcome
from jobs.options import option
from jobs.place import LightConfig, load_light
from pipeline.catalogue.probing import probe_catalogue
from pipeline.findings import Diagnosis, Finding, examined
from pipeline.machine import check_machine, check_resources, installed
from pipeline.monitoring import check_told
from pipeline.release.probing import probe_store
from pipeline.storage import Files


@dataclass(slots=True)
class Patient:
    """What is checked; config is None until it could be read, `wanted` says whether one was named at all.

    model: the whole config's, None where it was not read whole.
    """

    arguments: Arguments
    config: LightConfig | None = None
    model: Any = None
    wanted: bool = field(init=False)

    def __post_init__(self) -> None:
        named = any(name.upper().startswith("CODEBOOKS__") for name in os.environ)
        self.wanted = bool(self.arguments.config or self.arguments.overrides or named)


add_arguments = option(
    "--try",
    dest="tries",
    action="store_true",
    help="also start a worker, train one step and encode one batch, with the config's own model; takes a minute",
)


def run(arguments: Arguments) -> Outcome:
    """Make every check; a failed one does not stop the others, except those that need what failed."""
    patient = Patient(arguments)
    tries = getattr(arguments.options, "tries", False)
    findings = [
        finding
        for check in CHECKS
        for finding in examined(check.__name__.removeprefix("check_").removeprefix("the_"), check(patient))
    ]
    if tries:
        findings += _tried(patient, failed=[finding for finding in findings if finding.level == "fail"])
    found = Diagnosis(tuple(findings))
    return Outcome(
        reason="something is wrong" if found.failures else "healthy",
        details=found.details(),
        text=found.text(),
        exit_code=found.exit_code,
    )


def check_the_machine(_patient: Patient) -> Iterator[Finding]:
    """Python and the packages."""
    return check_machine()


def check_the_resources(patient: Patient) -> Iterator[Finding]:
    """Memory, and disk where the config keeps files too."""
    yield from check_resources(None if patient.config is None else patient.config.store.url)


def check_config(patient: Patient) -> Iterator[Finding]:
    """The config, whole where it names a catalogue and torch is there, else only the store and the channel."""
    if not patient.wanted:
        mend = "name one to have it, its store and its catalogue checked: codebooks doctor --config FILE"
        yield Finding("warn", "config", "none named", mend)
        return
    patient.config = load_light(patient.arguments)
    whole = patient.config.catalogue is not None and installed("torch") is not None
    if whole:
        # By name: it loads torch and ray, without which doctor must still work.
        patient.model = importlib.import_module("jobs.config").load_config(patient.arguments).model
    what = "whole config valid" if whole else "store and channel valid; names no catalogue, or torch is missing"
    yield Finding("ok", "config", f"{what}; store {patient.config.store.url}, channel {patient.config.publish.channel}")


def check_the_store(patient: Patient) -> Iterator[Finding]:
    """Write, read, list, delete and write once on the store; its clock and the channel's head."""
    if patient.config is not None:
        yield from probe_store(patient.config.store.open(), patient.config.publish.channel)


def check_catalogue(patient: Patient) -> Iterator[Finding]:
    """The catalogue's first file: is it there, does it have the columns that the config names."""
    if patient.config is not None and isinstance(patient.config.catalogue, dict):
        yield from probe_catalogue(patient.config.catalogue, patient.config.store.options())


def check_monitor(patient: Patient) -> Iterator[Finding]:
    """Those that a run tells how it goes: could they be told?"""
    if patient.config is not None and isinstance(patient.config.monitor, dict):
        yield from check_told(patient.config.monitor)


def check_pretrained(patient: Patient) -> Iterator[Finding]:
    """A pretrained network's file, and what it says of a test picture beside the vector that the config names."""
    if patient.config is not None and getattr(patient.model, "source", None) is not None:
        # By name: it loads torch.
        examine = importlib.import_module("pipeline.models.examining").examine
        yield from examine(patient.model, Files(patient.config.store.options()))


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_the_machine,
    check_config,
    check_the_resources,
    check_the_store,
    check_catalogue,
    check_monitor,
    check_pretrained,
)


def _tried(patient: Patient, failed: list[Finding]) -> list[Finding]:
    """Return what came of trying; with something broken already, only that it was left out."""
    missing = [name for name in ("torch", "ray") if installed(name) is None]
    if failed or missing:
        why = f"{', '.join(missing)} missing" if missing else f"{failed[0].name} failed"
        return [Finding("warn", "try", f"nothing was tried: {why}", "mend that first, then run this again")]
    whole = patient.config is not None and patient.config.catalogue is not None
    # By name, as in `check_config`.
    return list(importlib.import_module("jobs.trying").tried(patient.arguments, whole=whole))
