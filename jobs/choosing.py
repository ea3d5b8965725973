"""Candidates of `choose`: read from the config, presets and files, made by the stages in this process, written down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from jobs.command import Arguments
from jobs.computing import encode_photos, train_model
from jobs.config import Config
from jobs.context import Context
from jobs.sources import read_sources
from pipeline.errors import ConfigError
from pipeline.index import gather_latents
from pipeline.models import load_bundle
from pipeline.planning import Plan, make_plan
from pipeline.quality.choose_config import SECTIONS, default_candidates
from pipeline.quality.choosing import Candidate, Made
from pipeline.settings import Source, check_and_build, merge, normal
from pipeline.storage import Store
from pipeline.storage.overlay import Overlay

_BY_KEY = ("models/by-key/",)


@dataclass(frozen=True, slots=True)
class Named:
    """A candidate and the plain values of its whole config, as `--write` writes them."""

    candidate: Candidate
    values: Mapping[str, Any]


def named_candidates(arguments: Arguments, config: Config, names: str | None) -> dict[str, Named]:
    """Return the candidates by name: those of `--candidates`, else of the section, else the config's own and floors.

    A name is one of `choose.candidates`, a preset or a YAML file, of which the sections model, images and train count.
    Raises ConfigError that names the candidate and what is wrong.
    """
    base = merge(read_sources(arguments)).values
    section = {name: dict(sections) for name, sections in config.choose.candidates.items()}
    if names is not None:
        wanted = {name: section.get(name) or _from_file(name) for name in dict.fromkeys(names.split(",")) if name}
    else:
        wanted = section or {config.model.kind: {}, **default_candidates(config.images.size)}
    for name in [name for sections in wanted.values() for name in _members(sections)]:
        if name not in wanted and name in section:
            wanted[name] = section[name]
    if len(wanted) < 2:
        raise ConfigError(f"there is one candidate, {', '.join(wanted) or 'none'}; name at least two to choose among")
    named = {name: _named(name, sections, base, wanted) for name, sections in wanted.items()}
    if names is None and not section:  # the config's own model may be one of those that are always compared
        own = named[config.model.kind].candidate.settings.model
        named = {
            name: each
            for name, each in named.items()
            if name == config.model.kind or each.candidate.settings.model != own
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


@dataclass
class Stages:
    """Makes candidates by the stages of a night, in this process, on a store that is thrown away."""

    context: Context
    scratch: Store
    limit: int
    plans: dict[tuple[str, str], Plan] = field(default_factory=dict)

    def plan(self, settings: Any, apart: str) -> pa.Table:
        """Return the photos that a model of these settings is made of."""
        return self._plan(settings, apart).rows

    def made(self, settings: Any, apart: str, key: str, chosen: NDArray[np.bool_]) -> Made:
        """Return the model that answers the key, made of the chosen photos alone, and what it says of all."""
        context, plan = self._context(settings, apart), self._plan(settings, apart)
        plan = replace(plan, summary=plan.summary.model_copy(update={"train_key": key, "model_id": None}))
        begun = time.process_time()
        model_id = train_model(context, plan, lambda: None, chosen=chosen)
        spent = time.process_time() - begun
        plan = replace(plan, summary=plan.summary.model_copy(update={"model_id": model_id}))
        items = encode_photos(context, plan, model_id, lambda: None).items
        vectors = gather_latents(context.store, items).mean
        return Made(load_bundle(context.store, model_id), context.store, items, vectors, spent)

    def _plan(self, settings: Any, apart: str) -> Plan:
        """Return the plan of a seeded sample, compared with no release; one for all folds of a fusion's members."""
        named = (apart, settings.model.model_dump_json() + settings.images.model_dump_json())
        if named not in self.plans:
            context = self._context(settings, apart)
            self.plans[named] = make_plan(
                context.config, context.store, context.files, run=context.run.name, limit=self.limit
            )
        return self.plans[named]

    def _context(self, settings: Any, apart: str) -> Context:
        store = Overlay(self.scratch, self.context.store, apart=apart, apart_prefix=_BY_KEY)
        # Stored for all folds and seeds, whatever a night would do; thrown away at the end.
        images = settings.images.model_copy(update={"keep": "always"})
        return replace(self.context, config=settings.model_copy(update={"images": images}), store=store, here=True)


def _from_file(name: str) -> dict[str, Any]:
    values = merge(read_sources(Arguments(config=name), {})).values
    found = {section: values[section] for section in SECTIONS if section in values}
    if "model" not in found:
        raise ConfigError(f"candidate {name!r} has no section model; name a preset or a config with one")
    return found


def _members(sections: Mapping[str, Any]) -> list[str]:
    """Return the names in a fusion's members that are no model_ids."""
    model = sections.get("model", {})
    members = model.get("members", []) if model.get("kind") == "fusion" else []
    return [name for name in members if isinstance(name, str) and len(name) != 64]


def _named(name: str, sections: Mapping[str, Any], base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Named:
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
        settings = check_and_build(merge([normal(Source(f"candidate {name!r}", tried))]), Config)
    except ConfigError as error:
        raise ConfigError(f"candidate {name!r}: {error}") from error
    return Named(Candidate(name, settings, members), values)
