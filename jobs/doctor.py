"""Check this machine, the store, the config and the catalogue, and say what is wrong and how to mend it."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.command import Arguments, Outcome
from jobs.findings import Finding
from jobs.place import LightConfig, load_light
from pipeline.catalogue import CatalogueConfig, catalogue_files
from pipeline.catalogue.columns import choose_columns
from pipeline.catalogue.first_rows import read_sample
from pipeline.errors import CodebooksError, ConfigError, InputError
from pipeline.index.faiss_module import faiss_wheels, load_faiss
from pipeline.release import check_store, read_head
from pipeline.storage import Store, check_shows_writes, check_write_once, store_clock
from pipeline.storage.urls import scheme_of

_GIB = 2**30
_LEAST_DISK = 5 * _GIB
_LEAST_MEMORY = 4 * _GIB
_CLOCK_S = 300.0
_WORST_FIRST = (ConfigError.exit_code, InputError.exit_code, 1, 4, 5, 6)


@dataclass(slots=True)
class Patient:
    """What is checked; config is None until it could be read, `wanted` says whether one was named at all."""

    arguments: Arguments
    config: LightConfig | None = None
    store: Store | None = None
    wanted: bool = field(init=False)

    def __post_init__(self) -> None:
        named = any(name.upper().startswith("CODEBOOKS__") for name in os.environ)
        self.wanted = bool(self.arguments.config or self.arguments.overrides or named)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add doctor's own option."""
    parser.add_argument(
        "--try",
        dest="tries",
        action="store_true",
        help="also start a worker, train one step and encode one batch, with the config's own model; takes a minute",
    )


def run(arguments: Arguments) -> Outcome:
    """Make every check; a failed one does not stop the others, except those that need what failed."""
    patient = Patient(arguments)
    tries = getattr(arguments.options, "tries", False)
    findings = [finding for check in CHECKS for finding in _examined(check, patient)]
    if tries:
        findings += _tried(patient, failed=[finding for finding in findings if finding.level == "fail"])
    failures = [finding for finding in findings if finding.level == "fail"]
    code = next((code for code in _WORST_FIRST if any(finding.exit_code == code for finding in failures)), 0)
    warnings = sum(finding.level == "warn" for finding in findings)
    summary = f"{len(findings)} checks: {len(failures)} failed, {warnings} warnings"
    lines = [line for finding in findings for line in _lines(finding)]
    details = {
        "checks": [
            {"level": finding.level, "name": finding.name, "text": finding.text, "mend": finding.mend}
            for finding in findings
        ]
    }
    return Outcome(
        reason="healthy" if not failures else "something is wrong",
        details={**details, "exit_code": code} if code else details,
        text="\n".join([*lines, summary]),
        exit_code=code,
    )


def check_python(_patient: Patient) -> Iterator[Finding]:
    """Python's version and where the program runs from."""
    # An older Python than 3.11 does not get this far: pip refuses it.
    where = f"{platform.system()} {platform.machine()}, {sys.executable}"
    yield Finding("ok", "python", f"{platform.python_version()} on {where}")


def check_packages(_patient: Patient) -> Iterator[Finding]:
    """The packages of the base install (must) and of the extra `run` (needed to refresh), with their least versions."""
    try:
        required = importlib.metadata.requires("visual-codebooks") or []
    except importlib.metadata.PackageNotFoundError:
        mend = "run `pip install -e '.[run,cpu]'` in the checkout"
        yield Finding("warn", "packages", "visual-codebooks itself is not installed, so versions are not known", mend)
        return
    for extra, level in (("", "fail"), ("run", "warn")):
        problems = [problem for line in required if (problem := _package_problem(line, extra))]
        name = "packages" if not extra else f"packages [{extra}]"
        if not problems:
            yield Finding("ok", name, "all there, new enough")
        elif level == "fail":
            yield Finding(
                "fail", name, "; ".join(problems), "pip install 'visual-codebooks[cpu]'", ConfigError.exit_code
            )
        else:
            mend = "needed for demo, plan and refresh: pip install 'visual-codebooks[run,cpu]'"
            yield Finding("warn", name, "; ".join(problems), mend)


def check_faiss(_patient: Patient) -> Iterator[Finding]:
    """Exactly one FAISS wheel, and it imports."""
    try:
        faiss = load_faiss()
    except ConfigError as error:
        yield Finding("fail", "faiss", str(error), "", ConfigError.exit_code)
        return
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield Finding("ok", "faiss", f"{', '.join(faiss_wheels())} {faiss.__version__}, sees {gpus} GPUs")


def check_torch(_patient: Patient) -> Iterator[Finding]:
    """Torch's version and the GPUs that it sees."""
    torch = _optional("torch")
    if torch is None:
        yield Finding(
            "warn", "torch", "not installed", "needed to train and encode: pip install 'visual-codebooks[run]'"
        )
    elif torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding(
            "ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, {len(names)} GPUs: {', '.join(names)}"
        )
    elif torch.version.cuda and shutil.which("nvidia-smi"):
        mend = "update the NVIDIA driver, or install the torch of its CUDA version"
        yield Finding(
            "warn", "torch", f"{torch.__version__} is built for CUDA {torch.version.cuda} and sees no GPU", mend
        )
    else:
        yield Finding("ok", "torch", f"{torch.__version__}, no GPU: training and encoding run on the CPU")


def check_ray(_patient: Patient) -> Iterator[Finding]:
    """Ray's version and which cluster it would use."""
    ray = _optional("ray")
    if ray is None:
        yield Finding("warn", "ray", "not installed", "needed to train and encode: pip install 'visual-codebooks[run]'")
        return
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS is {address}" if address else "a local cluster is started when needed"
    yield Finding("ok", "ray", f"{ray.__version__}, {where}")


def check_resources(patient: Patient) -> Iterator[Finding]:
    """Processors, memory, and free disk where files are kept."""
    memory = _available_memory()
    shown = "unknown" if memory is None else f"{memory / _GIB:.1f} GiB available"
    if memory is not None and memory < _LEAST_MEMORY:
        mend = "lower encode.actors, train.batch_size and cluster.object_store_memory_mb, or use a larger machine"
        yield Finding("warn", "memory", f"{shown}, {os.cpu_count()} CPUs", mend)
    else:
        yield Finding("ok", "memory", f"{shown}, {os.cpu_count()} CPUs")
    for name, folder in _folders(patient):
        free = shutil.disk_usage(folder).free
        text = f"{free / _GIB:.1f} GiB free at {folder}"
        if free < _LEAST_DISK:
            yield Finding("warn", f"disk ({name})", text, "free some space, or choose another folder")
        else:
            yield Finding("ok", f"disk ({name})", text)


def check_config(patient: Patient) -> Iterator[Finding]:
    """The config, whole where it names a catalogue and torch is there, else only the store and the channel."""
    if not patient.wanted:
        mend = "name one to have it, its store and its catalogue checked: codebooks doctor --config FILE"
        yield Finding("warn", "config", "none named", mend)
        return
    patient.config = load_light(patient.arguments)
    whole = patient.config.catalogue is not None and _optional("torch") is not None
    if whole:
        # By name: it loads torch and ray, without which doctor must still work.
        importlib.import_module("jobs.config").load_config(patient.arguments)
    what = "whole config valid" if whole else "store and channel valid; names no catalogue, or torch is missing"
    yield Finding("ok", "config", f"{what}; store {patient.config.store.url}, channel {patient.config.publish.channel}")


def check_the_store(patient: Patient) -> Iterator[Finding]:
    """Write, read, list, delete and write once on the store, under a name of our own; its format, head and clock."""
    if patient.config is None:
        return
    store = patient.config.store.open()
    folder = f"runs/doctor-{uuid.uuid4().hex[:12]}/"
    check_write_once(store, f"{folder}probe")
    check_shows_writes(store, folder)
    try:
        clock = store_clock(store, f"{folder}clock")
    finally:
        store.delete(f"{folder}clock")
    patient.store = store
    yield Finding("ok", "store", f"{store.url}: write, read, list, delete and write-once work")
    off = abs((datetime.now(UTC) - clock).total_seconds())
    if off > _CLOCK_S:
        yield Finding(
            "warn", "clock", f"this machine and the store differ by {off:,.0f} s", "set this machine's clock (NTP)"
        )
    known = check_store(store)
    head = read_head(store, patient.config.publish.channel) if known else None
    current = f"current release {head.release_id} (number {head.number})" if head else "no release yet"
    yield Finding("ok", "channel", f"{patient.config.publish.channel}: {current}")


def check_catalogue(patient: Patient) -> Iterator[Finding]:
    """The catalogue's first file: is it there, does it have the columns that the config names."""
    if patient.config is None or not isinstance(patient.config.catalogue, dict):
        return
    try:
        config = CatalogueConfig.model_validate(patient.config.catalogue)
    except ValidationError as error:
        problems = "; ".join(f"catalogue.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"not looked at, its section is wrong: {problems}") from error
    files = catalogue_files(config, patient.config.store.options())
    sample = read_sample(config, files)
    what = f"{sample.format}, {sample.num_files:,} files" if sample.num_files > 1 else sample.format
    if sample.rows is None:
        yield Finding("ok", "catalogue", f"{sample.first}: {what}")
        return
    choose_columns(sample.rows.schema, config, sample.first)
    yield Finding("ok", "catalogue", f"{sample.first}: {what}, columns {', '.join(sample.rows.column_names)}")


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_faiss,
    check_torch,
    check_ray,
    check_config,
    check_resources,
    check_the_store,
    check_catalogue,
)


def _tried(patient: Patient, failed: list[Finding]) -> list[Finding]:
    """Return what came of trying; with something broken already, only that it was left out."""
    missing = [name for name in ("torch", "ray") if _optional(name) is None]
    if failed or missing:
        why = f"{', '.join(missing)} missing" if missing else f"{failed[0].name} failed"
        return [Finding("warn", "try", f"nothing was tried: {why}", "mend that first, then run this again")]
    whole = patient.config is not None and patient.config.catalogue is not None
    # By name, as in `check_config`.
    return list(importlib.import_module("jobs.trying").tried(patient.arguments, whole=whole))


def _examined(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except CodebooksError as error:
        name = check.__name__.removeprefix("check_").removeprefix("the_")
        yield Finding("fail", name, str(error), "", error.exit_code)


def _package_problem(requirement: str, extra: str) -> str:
    """Return what is wrong with one line of the package's own requirements, "" when nothing or it is of no concern."""
    wanted, _, marker = requirement.partition(";")
    of_extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?", wanted.strip())
    if match is None or (of_extra[1] if of_extra else "") != extra:
        return ""
    name, least = match[1], match[2]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return f"{name} is {found}, needed is {least}" if least and _numbers(found) < _numbers(least) else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _available_memory() -> int | None:
    psutil = _optional("psutil")
    return None if psutil is None else int(psutil.virtual_memory().available)


def _folders(patient: Patient) -> Iterator[tuple[str, Path]]:
    places = {"temporary files": Path(os.environ.get("TMPDIR", "/tmp"))}  # noqa: S108  looked at, not written to
    if patient.config is not None and not scheme_of(patient.config.store.url):
        places["store"] = Path(patient.config.store.url)
    for name, place in places.items():
        there = next((folder for folder in (place, *place.parents) if folder.is_dir()), None)
        if there is not None:
            yield name, there


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.level:<5}{finding.name}: {finding.text}"
    if finding.mend:
        yield f"       -> {finding.mend}"
