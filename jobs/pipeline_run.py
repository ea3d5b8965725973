"""One attempt of one run, stage by stage, up to the stage a command names."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import yaml

from jobs.building import build_candidate
from jobs.command import Arguments, Outcome
from jobs.computing import encode_photos, train_model
from jobs.config import Config, config_values, load_config, photo_files
from jobs.context import Context, ray_starter
from jobs.ray_session import early_session
from pipeline.errors import ConfigError, GateRefused
from pipeline.evaluation.verdicts import allowed_in
from pipeline.events import Finished, Planned, tell
from pipeline.monitoring import ALREADY, NO_CHANNEL, monitored
from pipeline.planning import Plan, nothing_to_do
from pipeline.planning.freezing import How, check_meant, frozen_plan, hold_meant
from pipeline.progress import Progress
from pipeline.quality.allowing import allowed_in_run, checked_allowed
from pipeline.quality.finding import Candidate
from pipeline.quality.gating import gate_names
from pipeline.quality.promoting import beside_text
from pipeline.quality.release_page import category_lines
from pipeline.release import entry_name, publish, sign_entry, sign_release, signers, write_allowance
from pipeline.runs import default_run_name, open_run
from pipeline.watch import Watch

Until = Literal["train", "encode", "index", "evaluate", "publish"]


def run_until(arguments: Arguments, until: Until) -> Outcome:
    """Run the stages up to and with `until`, continuing a run of the same name where it stopped.

    Raises ConfigError (exit 2), InputError (3), GateRefused (4), Conflict (5), Unavailable (6).
    """
    config = load_config(arguments)
    name = arguments.run or default_run_name()
    given = ("channel", "retrain", "live", "allow", "reason")
    how = How(limit=arguments.limit, **{key: getattr(arguments.options, key, None) for key in given})
    command = "refresh" if until == "publish" else until
    channel = how.channel or (config.publish.channel if how.limit is None else NO_CHANNEL)
    with monitored(config.monitor, config.store, run=name, command=command, channel=channel):
        return run_config(config, name=name, how=how, until=until, progress=Progress())


def run_config(config: Config, *, name: str, how: How, until: Until, progress: Progress) -> Outcome:
    """Run a validated config; what `run_until` does after reading the command line."""
    store = config.store.open()
    files = photo_files(config)
    signers(config.publish)  # a key that cannot be read is said now, and not after the encoding
    run = open_run(store, name)
    allowed = checked_allowed(how.allow, how.reason, gate_names(config.gates))
    if until == "publish":
        check_meant(config, run, how)
    with ExitStack() as stack:
        stack.enter_context(early_session(config.cluster, config_values(config)))
        attempt = stack.enter_context(run.begin(config_text(config, how)))
        done = run.read_result()
        if done is not None and done["published"]:
            tell(Finished(done["release"], published=True, reason=ALREADY, details=done))
            return Outcome(
                run=name, release=done["release"], published=True, reason=ALREADY, details=done, text=ALREADY
            )
        watch = stack.enter_context(Watch())
        may_pass = allowed_in_run(run, attempt.number, allowed)
        context = Context(config, store, files, run, attempt, progress, watch, allowed=may_pass)
        with watch.stage("plan"):
            plan = frozen_plan(context, how)
        tell(Planned(plan.summary.counts))
        for line in plan.summary.lines():
            progress.note(line)
        if plan.summary.renewal is not None:
            if until == "publish":
                hold_meant(plan.summary.renewal, config, run, how)
            progress.note("\n".join(plan.summary.renewal.lines()))
        if until == "publish" and nothing_to_do(plan, store, config):
            text = f"nothing has changed since release {plan.summary.parent}; the channel stays as it is"
            return finish(context, plan, "nothing to do", text, release=plan.summary.parent)
        return work(context, plan, until, stack)


def work(context: Context, plan: Plan, until: Until, stack: ExitStack) -> Outcome:
    """Run the stages after the plan; Ray is started by the first one that has something to compute."""
    start_ray = ray_starter(context, stack)
    model_id = train_model(context, plan, start_ray)
    if until == "train":
        text = f"bundle {model_id} answers train key {plan.summary.train_key[:12]}"
        return finish(context, plan, "trained", text, model_id=model_id)
    try:
        encoded = encode_photos(context, plan, model_id, start_ray)
    except GateRefused as refusal:  # before there is a release: the model is broken as a whole
        finish(context, plan, "refused by a gate", str(refusal), model_id=model_id)
        raise
    if until == "encode":
        usable, unusable = encoded.items.num_rows, encoded.refused.num_rows
        text = f"{usable:,} photos have latents of model {model_id[:12]}, {unusable:,} were refused"
        return finish(context, plan, "encoded", text, model_id=model_id)
    candidate = build_candidate(context, plan, model_id, encoded)
    release = candidate.manifest.release_id
    if until == "index":
        text = f"release {release} is written and on no channel"
        return finish(context, plan, "indexed", text, candidate=candidate)
    if candidate.refused:
        stopped = candidate.refusal()
        finish(context, plan, "refused by a gate", str(stopped), candidate=candidate)
        raise stopped
    if until == "evaluate" or plan.summary.channel is None:
        lines = [f"release {release} passes its gates and is on no channel"]
        if plan.summary.sample is not None and until == "publish":
            lines.append(
                f"it is a sample (--limit {plan.summary.sample.limit}) and never goes on publish.channel; with "
                "--channel NAME it is published on a channel for samples"
            )
        text = "\n  ".join(lines + category_lines(candidate.manifest.measures))
        return finish(context, plan, "evaluated", text, candidate=candidate)
    return publish_candidate(context, plan, candidate)


def publish_candidate(context: Context, plan: Plan, candidate: Candidate) -> Outcome:
    """Append the candidate to the channel as the entry after the plan's head, and only as that one."""
    context.attempt.check()
    release, digest = candidate.manifest.release_id, candidate.manifest_sha256
    with context.watch.stage("publish"):
        sign_release(context.store, release, signers(context.config.publish), expect_sha256=digest)
        write_allowance(
            context.store,
            entry_name(_channel(plan), plan.summary.head + 1),
            release_id=release,
            manifest_sha256=digest,
            run=context.run.name,
            attempt=context.attempt.number,
            allowed=allowed_in(candidate.verdicts),
        )
        entry = publish(
            context.store,
            _channel(plan),
            expected_head=plan.summary.head,
            release_id=release,
            manifest_sha256=digest,
            run=context.run.name,
            attempt=context.attempt.number,
        )
        sign_entry(context.store, _channel(plan), entry, signers(context.config.publish))
    text = f"published {entry.release_id} as number {entry.number} of channel {_channel(plan)}{candidate.quarantined()}"
    text += beside_text(context.store, context.config.publish, _channel(plan), candidate.manifest.model_id)
    return finish(context, plan, "published", text, candidate=candidate, published=True)


def config_text(config: Config, how: How) -> str:
    """Return what a run freezes of its config: the same for the same settings, wherever they came from.

    Without the sections `prior`, `choose` and `monitor`, which no stage reads: a change there must not keep tonight's
    run from going on.
    """
    settings = config_values(config)
    del settings["prior"], settings["choose"]
    settings |= {name: value for name, value in (("limit", how.limit), ("channel", how.channel)) if value is not None}
    return str(yaml.safe_dump(settings, sort_keys=True))


def finish(
    context: Context,
    plan: Plan,
    reason: str,
    text: str,
    *,
    candidate: Candidate | None = None,
    release: str | None = None,
    model_id: str | None = None,
    published: bool = False,
) -> Outcome:
    """Write result.json and return the outcome with what was measured. release: where there is no candidate."""
    release = candidate.manifest.release_id if candidate else release
    details: dict[str, Any] = {
        "plan": plan.summary.model_dump(mode="json"),
        "model_id": candidate.manifest.model_id if candidate else model_id or plan.summary.model_id,
        **context.watch.summary(),
        **(candidate.details() if candidate else {}),
    }
    name = context.run.name
    context.run.write_result({"run": name, "release": release, "published": published, "reason": reason, **details})
    tell(Finished(release, published, reason, details))
    return Outcome(run=name, release=release, published=published, reason=reason, details=details, text=text)


def _channel(plan: Plan) -> str:
    if plan.summary.channel is None:
        raise ConfigError(f"a sample of {plan.summary.limit} items is published on no channel; name one with --channel")
    return plan.summary.channel
