"""Sign a release that is on the store already, once its bytes are checked: with a new key, or the first one."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import option, takes
from jobs.place import open_place
from pipeline.errors import ConfigError
from pipeline.release import published_digest, read_signing_keys, sign_heads, sign_release, signers, verify_release

add_arguments = takes(
    option("release", metavar="RELEASE_ID", help="a release that some channel names"),
    option("--key", metavar="FILE|env:NAME", action="append", help="by default publish.sign.key"),
)


def run(arguments: Arguments) -> Outcome:
    """Verify every byte of the release and write a signature for each key; those that are there stay."""
    place, release = open_place(arguments), arguments.options.release
    store, named = place.store, arguments.options.key
    keys = read_signing_keys(named) if named else signers(place.config.publish)
    if not keys:
        raise ConfigError("no key to sign with; name one with --key FILE, or as publish.sign.key")
    digest = published_digest(store, release)
    if digest is None:
        raise ConfigError(f"no channel of {store.url} names {release!r}, so nothing says what its manifest should be")
    verify_release(store, release, expect_sha256=digest).require()
    names = [*sign_release(store, release, keys, expect_sha256=digest), *sign_heads(store, release, keys)]
    ids = [key.public.key_id for key in keys]
    details = {"signatures": names, "key_ids": ids}
    return Outcome(release=release, reason="signed", details=details, text=f"{release} is signed: {', '.join(names)}")
