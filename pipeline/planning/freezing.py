"""What a run settles once: the plan that all its attempts use, and that a night which does everything anew is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError
from ..runs import Attempt, Run
from ..storage import Files, Store
from .plan import Plan, make_plan
from .refused import ask_refused_again
from .renewal import Renewal, renewal_of
from .settings import NightSettings
from .standing import look

_PLAN = "plan.parquet"
_MEANT = "retrain.json"


@dataclass(frozen=True, slots=True)
class How:
    """What a command line says beside the config.

    limit: items of a seeded sample, None for the whole catalogue. channel: where to publish instead of publish.channel.
    retrain: everything may be trained and encoded anew. live: the channel's bundle is kept. allow, reason: gates that
    are let pass, and why; no part of what a run freezes as its config, so that a retry may add them.
    """

    limit: int | None = None
    channel: str | None = None
    retrain: bool | None = None
    live: bool | None = None
    allow: tuple[str, ...] | None = None
    reason: str | None = None


class NightAttempt(Protocol):
    """One live attempt of a run, and where it reads and writes."""

    @property
    def config(self) -> NightSettings: ...
    @property
    def store(self) -> Store: ...
    @property
    def files(self) -> Files: ...
    @property
    def run(self) -> Run: ...
    @property
    def attempt(self) -> Attempt: ...


def check_meant(config: NightSettings, run: Run, how: How) -> None:
    """Refuse a refresh that would train or encode everything anew by mistake, before it has left a trace.

    The run can then be repeated under its name with the settings that were meant. Raises ConfigError.
    """
    done = run.read_result()
    if done is not None and done["published"]:
        return
    held = run.read_frozen(_PLAN)
    if held is not None:
        renewal = Plan.from_bytes(held).summary.renewal
    else:
        standing = look(config, run.store, run=run.name, limit=how.limit, channel=how.channel, live=bool(how.live))
        renewal = renewal_of(standing, run.store)
    if renewal is not None:
        _require_meant(renewal, config, run, how)


def hold_meant(renewal: Renewal, config: NightSettings, run: Run, how: How) -> None:
    """Note for later attempts that everything is done anew. Raises ConfigError unless the user has said so."""
    _require_meant(renewal, config, run, how)
    run.freeze(_MEANT, renewal.model_dump_json().encode())


def _require_meant(renewal: Renewal, config: NightSettings, run: Run, how: How) -> None:
    if how.retrain or config.train.when_is_set or run.read_frozen(_MEANT) is not None:
        return
    raise ConfigError(renewal.refusal())


def frozen_plan(context: NightAttempt, how: How) -> Plan:
    """Return the run's plan: the one an earlier attempt froze, or a new one, frozen now."""
    held = context.run.read_frozen(_PLAN)
    earlier = held is not None
    if held is None:
        context.attempt.check()
        plan = make_plan(
            context.config,
            context.store,
            context.files,
            run=context.run.name,
            limit=how.limit,
            channel=how.channel,
            live=bool(how.live),
        )
        data = plan.to_bytes()
        held = context.run.freeze(_PLAN, data)
    if earlier or held is not data:  # else the rows are here already, and another copy of them would be as large
        plan = Plan.from_bytes(held)
    if plan.summary.limit is not None and plan.summary.sample is None:
        raise ConfigError(
            f"run {context.run.name!r} was planned by a version that took a sample (--limit {plan.summary.limit}) for "
            "the catalogue; start a run of another name"
        )
    return ask_refused_again(plan, context.config, context.store, context.files) if earlier else plan
