"""Read a release's files and compare each with its manifest."""

from __future__ import annotations

import secrets

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, option, takes
from jobs.place import open_place
from pipeline.errors import ConfigError
from pipeline.release import SeenHeads, promotable, published_digest, read_trusted_keys, trusted_head, verify_release
from pipeline.storage.cache import FileCache

add_arguments = takes(
    option("release", metavar="RELEASE_ID", nargs="?", help="by default the channel's current release"),
    CHANNEL,
    option("--sample", metavar="SHARE", type=float, default=1.0, help="read only this share, as 0.05"),
    option("--trusted-keys", metavar="FILE", action="append", help="a public key that must have signed it"),
    option(
        "--trusted-channel",
        action="store_true",
        help="such a key must have put it on the channel, too, whose log has all that this machine has seen of it",
    ),
    option("--seed", metavar="N", type=int, help="which files a sample reads; by default others each time"),
)


def run(arguments: Arguments) -> Outcome:
    """Name every file that is not what the manifest says, or say that there is none."""
    options = arguments.options
    arguments, named = arguments.settings_apart([options.release] if options.release else [])
    place = open_place(arguments)
    store = place.store
    trusted = read_trusted_keys(options.trusted_keys) if options.trusted_keys else ()
    if options.trusted_channel and (named or not trusted):
        raise ConfigError(
            "--trusted-channel asks who put the channel's current release there: give --trusted-keys FILE, and no "
            "RELEASE_ID"
        )
    head = None
    if options.trusted_channel:  # and remember it, as readers do
        head = trusted_head(store, place.channel, trusted, SeenHeads(FileCache().folder))
    release = named[0] if named else (head or promotable(store, place.channel)).release_id
    digest = published_digest(store, release)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    check = verify_release(store, release, expect_sha256=digest, trusted=trusted, share=options.sample, seed=seed)
    check.require()
    text = f"{release} is whole: {check.files} files and {check.parts} parts read, {check.bytes:,} bytes"
    text += f"; {check.listed} more are there in their size (--seed {seed})" if check.listed else ""
    text += f"; signed by one of {len(trusted)} trusted keys" if trusted else ""
    text += f", and so is its place on channel {place.channel!r}" if options.trusted_channel else ""
    text += "" if digest or trusted else "; no channel names it, so its manifest was held against nothing"
    details = {"files": check.files, "parts": check.parts, "bytes": check.bytes, "listed": check.listed, "seed": seed}
    return Outcome(release=release, reason="verified", details=details, text=text)
