"""Read a release's files and compare each with its manifest."""

from __future__ import annotations

import argparse
import re
import secrets

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.release import check_store, promotable, published_digest, read_trusted_keys, verify_release


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument("release", metavar="RELEASE_ID", nargs="?", help="by default the channel's current release")
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--sample", metavar="SHARE", type=float, default=1.0, help="read only this share, as 0.05")
    parser.add_argument("--trusted-keys", metavar="FILE", action="append", help="a public key that must have signed it")
    parser.add_argument("--seed", metavar="N", type=int, help="which files a sample reads; by default others each time")


def run(arguments: Arguments) -> Outcome:
    """Name every file that is not what the manifest says, or say that there is none."""
    options, release = arguments.options, arguments.options.release
    if release is not None and re.match(r"[a-z_.]+=", release):  # a setting, where no release is named
        arguments, release = arguments.with_overrides(release), None
    config = load_light(arguments)
    store = config.store.open()
    check_store(store)
    if release is None:
        release = promotable(store, options.channel or config.publish.channel).release_id
    digest = published_digest(store, release)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    trusted = read_trusted_keys(options.trusted_keys) if options.trusted_keys else ()
    check = verify_release(store, release, expect_sha256=digest, trusted=trusted, share=options.sample, seed=seed)
    check.require()
    text = f"{release} is whole: {check.files} files and {check.parts} parts read, {check.bytes:,} bytes"
    text += f"; {check.listed} more are there in their size (--seed {seed})" if check.listed else ""
    text += f"; signed by one of {len(trusted)} trusted keys" if trusted else ""
    text += "" if digest or trusted else "; no channel names it, so its manifest was held against nothing"
    details = {"files": check.files, "parts": check.parts, "bytes": check.bytes, "listed": check.listed, "seed": seed}
    return Outcome(release=release, reason="verified", details=details, text=text)
