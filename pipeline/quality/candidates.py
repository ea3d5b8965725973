"""Candidates of `choose` by name: the config's own settings with each one's sections in place; and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..planning import NightSettings
from ..settings import Source
from .choose_config import SECTIONS, ChooseConfig, default_candidates
from .choosing import Candidate

Values = Mapping[str, Any]
Read = Callable[[str], Values]  # a preset's or file's name to its values
Build = Callable[[Source], NightSettings]


@dataclass(frozen=True, slots=True)
class Named:
    """A candidate and the plain values of its whole config, as `--write` writes them."""

    candidate: Candidate
    values: Mapping[str, Any]


def named_candidates(
    choose: ChooseConfig, own: NightSettings, base: Values, names: str | None, *, read: Read, build: Build
) -> dict[str, Named]:
    """Return the candidates by name: those of `names`, else of the section, else the config's own and floors.

    A name is one of `choose.candidates`, a preset or a YAML file, of which the sections model, images and train count.
    own: the whole config, and base its plain values. read: a preset or file; build: settings of values, checked. Raises
    ConfigError that names the candidate and what is wrong.
    """
    section = {name: dict(sections) for name, sections in choose.candidates.items()}
    if names is not None:
        wanted = {name: section.get(name) or _from_file(name, read) for name in dict.fromkeys(names.split(",")) if name}
    else:
        wanted = section or {own.model.kind: {}, **default_candidates(own.images.size)}
    for name in [name for sections in wanted.values() for name in _members(sections)]:
        if name not in wanted and name in section:
            wanted[name] = section[name]
    if len(wanted) < 2:
        raise ConfigError(f"there is one candidate, {', '.join(wanted) or 'none'}; name at least two to choose among")
    named = {name: _named(name, sections, base, wanted, build) for name, sections in wanted.items()}
    if names is None and not section:  # the config's own model may be one of those that are always compared
        mine = named[own.model.kind].candidate.settings.model
        named = {
            name: each
            for name, each in named.items()
            if name == own.model.kind or each.candidate.settings.model != mine
        }
    return named


def written(named: Named, others: Mapping[str, Named], header: str) -> dict[str, str]:
    """Return the text of the winner's config, under "", and those of a fusion's members, by their names."""
    members = named.candidate.members
    lines = [f"# {line}" for line in header.splitlines()]
    if members:
        lines += [
            "# Train its members first (`codebooks train --config FILE`), then set model.members to their model_ids:",
            f"# {', '.join(members)}.",
        ]
    texts = {"": "\n".join(lines) + "\n" + yaml.safe_dump(dict(named.values), sort_keys=False)}
    for member in members:
        texts |= {member + deeper: text for deeper, text in written(others[member], others, f"member {member}").items()}
    return texts


def write_winner(target: Path, named: Named, others: Mapping[str, Named], header: str) -> None:
    """Write the winner's config to a file, and those of a fusion's members beside it under their names."""
    for member, text in written(named, others, header).items():
        path = target.with_name(f"{target.stem}-{member}{target.suffix}") if member else target
        path.write_text(text, encoding="utf-8")


def _from_file(name: str, read: Read) -> dict[str, Any]:
    values = read(name)
    found = {section: values[section] for section in SECTIONS if section in values}
    if "model" not in found:
        raise ConfigError(f"candidate {name!r} has no section model; name a preset or a config with one")
    return found


def _members(sections: Mapping[str, Any]) -> list[str]:
    """Return the names in a fusion's members that are no model_ids."""
    model = sections.get("model", {})
    members = model.get("members", []) if model.get("kind") == "fusion" else []
    return [name for name in members if isinstance(name, str) and len(name) != 64]


def _named(name: str, sections: Values, base: Values, wanted: Values, build: Build) -> Named:
    """Return one candidate: the config's own settings with its sections in their place."""
    values = {section: value for section, value in base.items() if section != "choose"}
    own = {**sections, "train": {**sections.get("train", {})}}
    own["train"].pop("split_by", None)  # of the preset's own catalogue; folds decide it here
    values["model"] = own.get("model", values["model"])
    values["images"] = {**values.get("images", {}), **own.get("images", {})}
    values["train"] = {**values.get("train", {}), **own["train"]}
    members = tuple(_members(sections))
    if unknown := [member for member in members if member not in wanted]:
        raise ConfigError(
            f"candidate {name!r} fuses {unknown[0]!r}, which is no model_id and no candidate; there are: "
            f"{', '.join(wanted)}"
        )
    tried = values
    if members:  # names stand for model_ids that each fold brings
        ids = [sha256(member.encode()).hexdigest() for member in members]
        tried = {**values, "model": {**values["model"], "members": ids}}
    try:
        settings = build(Source(f"candidate {name!r}", tried))
    except ConfigError as error:
        raise ConfigError(f"candidate {name!r}: {error}") from error
    return Named(Candidate(name, settings, members), values)
