"""Make a release of one channel the current one of another, once its bytes are checked."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import ALLOWING, option, takes
from jobs.place import LightConfig
from jobs.sources import read_config
from pipeline.evaluation.gates import GatesConfig
from pipeline.quality.promoting import require_promotable
from pipeline.release import check_store, promotable, promote, read_head, verify_release
from pipeline.release.channel import undo_text, unmoved_text

add_arguments = takes(
    option("source", metavar="SOURCE_CHANNEL", help="the channel that has the release, as `canary`"),
    option("target", metavar="TARGET_CHANNEL", help="the channel that is to have it, as `stable`"),
    option("--release", metavar="RELEASE_ID", help="one of the source's log; by default its current one"),
    option("--sample", metavar="SHARE", type=float, default=1.0, help="read only this share of the files"),
    ALLOWING,
)


class PromoteConfig(LightConfig):
    """The light config, and what must hold between the two releases."""

    gates: GatesConfig = GatesConfig()


def run(arguments: Arguments) -> Outcome:
    """Judge and verify the release and append it to the other channel's log; a later rollback can undo it.

    Raises GateRefused (exit 4) where it does not keep gates.promote.
    """
    options = arguments.options
    config = read_config(arguments, PromoteConfig)
    store = config.store.open()
    check_store(store)
    before = read_head(store, options.target)
    asked = promotable(store, options.source, options.release)
    details = {"channel": options.target, "source": options.source, "before": before and before.release_id}
    if before is not None and before.release_id == asked.release_id:
        text = unmoved_text(options.target, asked.release_id)
        return Outcome(release=asked.release_id, reason="nothing to do", details=details, text=text)
    found = require_promotable(store, asked, before, config.gates.promote, allow=options.allow, reason=options.reason)
    details["verdicts"] = [verdict.plain() for verdict in found.verdicts]
    verify_release(store, asked.release_id, expect_sha256=asked.manifest_sha256, share=options.sample).require()
    entry = promote(store, options.source, options.target, release=asked.release_id, allowed=found.allowed)
    text = f"channel {options.target} is at {entry.release_id} (number {entry.number}), promoted from {options.source}"
    text += f". {undo_text(options.target, before)}" if before else ""
    details["number"] = entry.number
    return Outcome(release=entry.release_id, published=True, reason="promoted", details=details, text=text)
