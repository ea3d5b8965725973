"""What a submitted job brings to the cluster: our packages, its command and config, the variables it was given."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError

DISTRIBUTION = "visual-codebooks"
PACKAGES = ("pipeline", "jobs", "cluster")
# Below the job's working folder.
FOLDER = "submitted"
JOB_FILE = f"{FOLDER}/job.json"

# Settings of a command: the same there as here, or the config that was checked here would not be the one that runs.
_ALWAYS = "CODEBOOKS__*"
# They name files or services of this machine; a pattern does not mean them.
_OF_THIS_MACHINE = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_*",
)  # fmt: skip
# What the processes there are made of.
_OF_THE_CLUSTER = ("RAY_*", "PYTHON*", "LD_*", "PATH", "HOME", "VIRTUAL_ENV")


class JobFile(BaseModel):
    """What the job runs. words: the command line after `codebooks`. environment: variables for it and its workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...]
    environment: dict[str, str]


def passed_variables(named: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a job is given: those named, by name or pattern (`AWS_*`), and CODEBOOKS__* always.

    Raises ConfigError for a name that is not set here, and for one that the cluster's own processes are made of.
    """
    found: dict[str, str] = {}
    for pattern in (*named, _ALWAYS):
        if any(fnmatch.fnmatchcase(pattern, other) for other in _OF_THE_CLUSTER):
            raise ConfigError(
                f"--pass {pattern!r} is what the cluster's own processes are made of; set it where Ray is started"
            )
        names = [name for name in environment if fnmatch.fnmatchcase(name, pattern)]
        if set(pattern) & set("*?["):
            names = [name for name in names if not _left_out(name)]
        if not names and pattern != _ALWAYS:
            raise ConfigError(f"--pass {pattern!r}: no such variable is set here; set it, or take the option away")
        found |= {name: environment[name] for name in names}
    return dict(sorted(found.items()))


def not_passed(given: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return the names of credentials that are set here and stay here, for a note: the cluster may have a role."""
    return [name for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL") if name in environment and name not in given]


def pack(folder: Path, job: JobFile, config: Path | None, *, code: bool) -> Path:
    """Write the working folder of a job and return it; nothing of the current folder is in it but the config file.

    code: our packages too, as they are installed here. The file with the variables is readable by its owner alone, also
    where Ray unpacks it.
    """
    own = folder / FOLDER
    own.mkdir(parents=True)
    if config is not None:
        (own / config.name).write_bytes(config.read_bytes())
    if code:
        for package in PACKAGES:
            _copy_package(package, folder)
        _copy_metadata(folder)
    file = os.open(own / Path(JOB_FILE).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        opened.write(job.model_dump_json())
    return folder


def _left_out(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*_OF_THIS_MACHINE, *_OF_THE_CLUSTER))


def _copy_package(package: str, folder: Path) -> None:
    source = Path(__file__).resolve().parents[1] / package
    for path in sorted(source.rglob("*")):
        below = path.relative_to(source)
        if (
            path.is_file()
            and "__pycache__" not in below.parts
            and not any(part.startswith(".") for part in below.parts)
        ):
            target = folder / package / below
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def _copy_metadata(folder: Path) -> None:
    """Write the distribution's record of itself, by which a release says the version that made it."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{DISTRIBUTION} is not installed here; run `pip install -e .` in its checkout") from error
    place = folder / f"{DISTRIBUTION.replace('-', '_')}-{installed.version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {installed.version}\n")
