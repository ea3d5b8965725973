"""Which photo an address names: without what is signed anew every night.

A signature is a credential and no part of what is at an address: kept in a URI it would be published, and every photo
would be another one every night.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

UriIdentity = Literal["auto", "path", "full"]

# Parameters of a signature, in lower case. The first set marks it: the other one is dropped beside a mark only, since
# names such as `expires`, `sp` or `token` mean other things elsewhere.
_SIGNED = (
    # Amazon S3 SigV2, Google Cloud Storage V2, CloudFront, Alibaba OSS, Huawei OBS
    (
        {"signature"},
        {"awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "accesskeyid", "expires", "key-pair-id", "policy",
         "hash-algorithm", "security-token", "response-cache-control"},
    ),
    # Azure SAS
    (
        {"sig"},
        {"sv", "ss", "srt", "sp", "st", "se", "sr", "spr", "sip", "si", "ses", "sdd", "skoid", "sktid", "skt", "ske",
         "sks", "skv", "saoid", "suoid", "scid", "sduoid", "exp", "expires"},
    ),
    # Tencent COS
    ({"q-signature"}, {"q-sign-algorithm", "q-ak", "q-sign-time", "q-key-time", "q-header-list", "q-url-param-list"}),
)  # fmt: skip
# Amazon SigV4, Google V4, Volcengine V4: whatever begins so, beside `<begin>signature`.
_FAMILIES = ("x-amz-", "x-goog-", "x-tos-", "x-obs-")
_OSS4 = {
    "x-oss-signature", "x-oss-signature-version", "x-oss-credential", "x-oss-date", "x-oss-expires",
    "x-oss-additional-headers", "x-oss-security-token",
}  # fmt: skip
_AKAMAI = {"hdnts", "hdnea", "hdntl", "__token__", "__gda__", "__cld_token__"}
# Values that are a signature wherever they stand: `exp=...~hmac=...` (Akamai, Cloudinary), a JSON web token.
_VALUES = re.compile(
    r"(exp=\d+~.*)?(hmac|sig)=[0-9a-f]{16,}|(?=.*~hmac=)exp=.*|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+", re.IGNORECASE
)
_HEX32 = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_STAMP = re.compile(r"\d{9,13}-.{8,}")


def identities(addresses: pa.Array, rule: UriIdentity) -> pa.Array:
    """Return which photo each web address names; any other URI as it is. `rule`: see catalogue.uri_identity."""
    web = pc.match_substring_regex(addresses, r"^(?i:https?)://")
    if rule == "full" or not pc.any(web).as_py():
        return addresses
    longer = pc.fill_null(pc.and_(web, pc.match_substring_regex(addresses, r"[?@]")), False)
    if not pc.any(longer).as_py():
        return addresses
    named = [identity(address, rule) for address in addresses.filter(longer).to_pylist()]
    return pc.replace_with_mask(addresses, longer, pa.array(named, addresses.type))


def identity(address: str, rule: UriIdentity) -> str:
    """Return which photo a web address names: without user and password, and without its signature (`auto`) or its
    whole query (`path`)."""
    if rule == "full":
        return address
    begin, _, rest = address.partition("://")
    place, mark, fragment = rest.partition("#")
    path, _, query = place.partition("?")
    host, slash, path = path.partition("/")
    _, at, host = host.rpartition("@")
    kept = "" if rule == "path" else _unsigned(query)
    return f"{begin}://{'***@' if at else ''}{host}{slash}{path}{'?' if kept else ''}{kept}{mark}{fragment}"


def _unsigned(query: str) -> str:
    pairs = [(pair, *_pair(pair)) for pair in query.split("&") if pair]
    names = {name for _, name, _ in pairs}
    dropped = set(_AKAMAI)
    for marks, others in _SIGNED:
        if marks & names:
            dropped |= marks | others
    begins = tuple(begin for begin in _FAMILIES if f"{begin}signature" in names)
    if "x-oss-signature" in names:
        dropped |= _OSS4  # `x-oss-process` says which picture is meant
    if begins or "signature" in names:
        dropped |= {"x-id", *(name for name in names if name.startswith(begins or ("x-amz-",)))}
    if {"token", "expires"} <= names or {"token", "expire"} <= names:  # Bunny, KeyCDN
        dropped |= {"token", "expires", "expire", "token_path", "token_countries"}
    if {"oh", "oe"} <= names:  # Meta
        dropped |= {"oh", "oe"}
    kept = [pair for pair, name, value in pairs if name not in dropped and not _is_signature(name, value)]
    if len(kept) < len(pairs):  # an expiry beside a signature that was told by its value
        kept = [pair for pair in kept if _pair(pair)[0] != "expires"]
    return "&".join(kept)


def _is_signature(name: str, value: str) -> bool:
    if _VALUES.fullmatch(value):
        return True
    if name in {"s", "ixs", "hmac"}:  # imgix signs with an MD5 under the name `s`, which elsewhere is a size
        return bool(_HEX32.fullmatch(value.lower()))
    return name == "verify" and bool(_STAMP.fullmatch(value))  # Cloudflare


def _pair(pair: str) -> tuple[str, str]:
    name, _, value = pair.partition("=")
    return urllib.parse.unquote(name).lower(), urllib.parse.unquote(value)
