"""The manifest: the one document that says what a release is made of and where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_serializer, model_validator

from ..errors import ConfigError, InputError, IntegrityError, NotFound
from ..keys import DIGEST, SHORT, digest_of, key_of, portable
from ..parts import PartFile
from ..storage import Store

FORMAT: Final = 4  # the newest manifest that this version reads; it writes the oldest that can say what is in one
ROTATED: Final = 4  # what knows nothing of rotations would compare a photo's latents with vectors in other axes
SPACE = "space"  # the role of a rotation's file, and its entry among the inputs
RELEASES = "releases/"
SEGMENTS = "indexes/"  # of indexes, which several releases share
SEGMENTED = ("index", "features")  # the roles whose files may lie there
# A run's name, `-` and 12 hex; what schedulers pass as a logical date fits.
RELEASE_ID = r"^[A-Za-z0-9][A-Za-z0-9._:+=@-]{0,140}$"
PLAIN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # a file's or folder's name, of one part


class FileEntry(BaseModel):
    """One file of a release. name: full name on the store; bytes: its size; rows: of a table or index, else None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=DIGEST)
    rows: int | None = Field(default=None, ge=0)


class Sample(BaseModel):
    """That only so many items of a catalogue were taken, drawn by a seed: a try, never the catalogue itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = Field(ge=1)
    seed: int = Field(ge=0)


class Manifest(BaseModel):
    """What a release holds and its lineage; written last and never changed.

    Every name in it is a full name on the store. format: 1 where each role has one file, which earlier versions read, 2
    where one has several, 3 where the index is made of segments, which lie outside of the release, 4 where its vectors
    are rotated (role `space`, see `index.space`). files: by role (`items`, `quarantine`, `changes`, `index`, `report`),
    those of a table in the order of its rows. parts: the latents parts that items names, in name order. encoder,
    bundle_config: the files of the model's bundle that a query by photo reads, `encoder.onnx` and `config.json`; None
    in releases from before these were listed. counts, measures: by name.
    inputs: where the catalogue was read from, the train key, `sample` where it is one, and the gates' `verdicts`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2, 3, 4] = 1
    release_id: str = Field(pattern=RELEASE_ID)
    release_key: str
    run: str
    attempt: int = Field(ge=1)
    created: datetime
    parent: str | None = Field(pattern=RELEASE_ID)
    model_id: str = Field(pattern=PLAIN)
    model_kind: str
    latent_dim: int = Field(ge=1)
    transform_id: str
    metric: str
    index_kind: str
    index_parameters: dict[str, int | FiniteFloat | str | bool | None] = {}
    counts: dict[str, int] = {}
    measures: dict[str, FiniteFloat] = {}
    files: dict[str, Annotated[tuple[FileEntry, ...], Field(min_length=1)]]
    parts: tuple[PartFile, ...]
    encoder: FileEntry | None = None
    bundle_config: FileEntry | None = None
    config: dict[str, Any] = {}
    code_version: str
    inputs: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_file_a_role(cls, given: Any) -> Any:
        """In format 1 a role's file stands by itself."""
        if not isinstance(given, dict) or given.get("format", 1) != 1 or not isinstance(given.get("files"), dict):
            return given
        return {**given, "files": {role: _alone(held) for role, held in given["files"].items()}}

    @model_validator(mode="after")
    def _fits_its_format(self) -> Manifest:
        several = [role for role, entries in self.files.items() if len(entries) > 1]
        if self.format == 1 and several:
            raise ValueError(f"format 1 has one file a role, and there are several of {', '.join(several)}")
        if self.format < 3 and self.segmented:
            raise ValueError(f"format {self.format} has no segments, and its index is made of some")
        if self.format < ROTATED and SPACE in self.files:
            raise ValueError(f"format {self.format} has no rotated space, and there is a file of the role {SPACE}")
        return self

    @field_serializer("files")
    def _stored_files(self, files: dict[str, tuple[FileEntry, ...]]) -> dict[str, Any]:
        dumped = {role: [entry.model_dump(mode="json") for entry in entries] for role, entries in files.items()}
        return {role: entries[0] for role, entries in dumped.items()} if self.format == 1 else dumped

    @property
    def segmented(self) -> bool:
        """Whether the index is made of segments, and items says in which of them each row is."""
        return any(entry.name.startswith(SEGMENTS) for entry in self.files.get("index", ()))

    def files_of(self, role: str) -> tuple[FileEntry, ...]:
        """Return the files of a role, in the order of their rows. Raises IntegrityError when there are none."""
        found = self.files.get(role)
        if not found:
            raise IntegrityError(f"release {self.release_id} has no file of the role {role!r}")
        return found

    def file(self, role: str) -> FileEntry:
        """Return the one file of a role that has one. Raises IntegrityError when there are none or several."""
        found = self.files_of(role)
        if len(found) > 1:
            raise IntegrityError(f"release {self.release_id} has {len(found)} files of the role {role!r}, expected one")
        return found[0]

    def to_bytes(self) -> bytes:
        """Return the one JSON text of this manifest: sorted keys, no white space, UTF-8."""
        return document_bytes(self)

    @property
    def sample(self) -> Sample | None:
        """Return which sample of its catalogue this release is of, None for one of the whole."""
        # Among the free-form inputs, so that readers of before can read the release too.
        found = self.inputs.get("sample")
        return None if found is None else Sample.model_validate(found)

    @property
    def verdicts(self) -> list[dict[str, Any]] | None:
        """Return what the gates said, one a gate, as rows of the table `verdicts`; None in releases from before."""
        found = self.inputs.get("verdicts")
        return None if found is None else list(found)

    def names(self) -> list[str]:
        """Return the name of every file that a reader of this release may open, its manifest aside."""
        own = [entry.name for entries in self.files.values() for entry in entries]
        return [*own, *(part.name for part in self.parts), *(entry.name for entry in self.bundle_files())]

    def bundle_files(self) -> list[FileEntry]:
        """Return the files of the model's bundle that this manifest lists: two, or none in an older release."""
        return [entry for entry in (self.encoder, self.bundle_config) if entry is not None]


def _alone(held: Any) -> Any:
    return [held] if isinstance(held, FileEntry) or (isinstance(held, dict) and "name" in held) else held


def document_bytes(document: BaseModel) -> bytes:
    """Return a stored document's one JSON text: sorted keys, no white space, UTF-8, no NaN.

    Unlike `keys.canonical_json` it takes floats: these bytes are hashed as they lie, never recomputed.
    """
    value = document.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def release_key(
    *,
    items_digest: str,
    model_id: str,
    index: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    gates: Mapping[str, Any],
    parent: str | None,
    manifest_format: Literal[1, 2, 3, 4] = 1,
    tables: Mapping[str, Any] | None = None,
) -> str:
    """Return the key of a release (64 hex): what is in it, not when or by which code it was made.

    items_digest, manifest_format: as `tables.hashed_table` returns them. index, evaluation, gates: those sections of
    the config as plain JSON values. tables: the sections on further tables, where there are some.
    """
    asked: dict[str, Any] = {
        "format": manifest_format,
        "items": items_digest,
        "model": model_id,
        "index": dict(index),
        "evaluation": dict(evaluation),
        "gates": dict(gates),
        "parent": parent,
    }
    if tables:
        asked["tables"] = dict(tables)
    return key_of(portable(asked))


def release_id(run: str, key: str) -> str:
    """Return the id of the release that a run makes: `<run>-<first 12 hex of its release_key>`."""
    return f"{run}-{key[:SHORT]}"


def release_folder(release: str) -> str:
    """Return the folder of a release on the store, with its `/`. Raises ConfigError for what is no release's id."""
    if not re.fullmatch(RELEASE_ID, release):
        raise ConfigError(
            f"{release!r:.200} is no release's id; `codebooks releases` lists those of a channel, for example "
            "2026-11-21-0123456789ab"
        )
    return f"{RELEASES}{release}/"


def manifest_name(release: str) -> str:
    """Return the name of a release's manifest on the store."""
    return f"{release_folder(release)}manifest.json"


def read_manifest(store: Store, release: str, *, expect_sha256: str | None = None) -> Manifest:
    """Return a release's manifest.

    expect_sha256: what the channel's entry says of it. Raises NotFound when there is no such release, IntegrityError
    when the bytes are not those expected or no manifest, InputError when a newer version of this library wrote it.
    """
    return read_hashed_manifest(store, release, expect_sha256=expect_sha256)[0]


def read_hashed_manifest(store: Store, release: str, *, expect_sha256: str | None = None) -> tuple[Manifest, str]:
    """Return a release's manifest and the sha256 of its bytes; errors as `read_manifest`."""
    name = manifest_name(release)
    try:
        data = store.get(name)
    except NotFound as error:
        raise NotFound(
            f"there is no release {release!r} on {store.url}; `codebooks releases` lists those of a channel"
        ) from error
    digest = digest_of(data)
    if expect_sha256 is not None and digest != expect_sha256:
        raise IntegrityError(
            f"{name} has the sha256 {digest}, expected {expect_sha256}: it was changed after it was published; "
            "roll the channel back to another release"
        )
    manifest = parse_manifest(data, name)
    if manifest.release_id != release:
        raise IntegrityError(
            f"{name} is the manifest of {manifest.release_id!r}: releases must not be moved or renamed"
        )
    return manifest, digest


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Return the manifest that these bytes hold; `name` is for the error text. Raises IntegrityError, InputError."""
    document = read_document(data, name)
    check_format(document, name)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{name} is not a manifest of format {document['format']}: {error}") from error
    for what, found in _strays(manifest):
        raise IntegrityError(
            f"{name} names {found!r:.200} as {what}: names must stay inside their folder; no run wrote this manifest, "
            "roll the channel back to another release"
        )
    return manifest


def _strays(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (what, name) of every file that does not lie where this manifest's files belong."""
    own, bundle = release_folder(manifest.release_id), f"models/{manifest.model_id}/"
    segments = f"{SEGMENTS}{manifest.model_id}/"
    for role, entries in manifest.files.items():
        for entry in entries:
            shared = role in SEGMENTED and entry.name.startswith(segments)
            folder = segments if shared else own
            if not entry.name.startswith(folder) or not re.fullmatch(PLAIN, entry.name.removeprefix(folder)):
                yield f"its {role}", entry.name
    for part in manifest.parts:
        folder = f"latents/{manifest.model_id}/"
        if not part.name.startswith(folder) or not re.fullmatch(PLAIN, part.name.removeprefix(folder)):
            yield "a part of its own model", part.name
    for file, belongs in ((manifest.encoder, "encoder.onnx"), (manifest.bundle_config, "config.json")):
        if file is not None and file.name != bundle + belongs:
            yield f"its model's {belongs}", file.name


def read_document(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that these bytes hold. Raises IntegrityError when they hold none."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{name} is not JSON ({error}); its first bytes are {data[:40]!r}") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{name} holds a JSON {type(document).__name__}, expected an object")
    return document


def check_format(document: Mapping[str, Any], name: str, *, newest: int = FORMAT) -> None:
    """Raise InputError when a document was written in a newer format than this library knows."""
    found = document.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise IntegrityError(f"{name} has the format {found!r}, expected a whole number from 1 to {newest}")
    if found > newest:
        raise InputError(
            f"{name} has the format {found}, and this version reads formats up to {newest}; "
            "upgrade visual-codebooks (pip install --upgrade visual-codebooks)"
        )
