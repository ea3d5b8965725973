"""JPEG, PNG and AVIF files without what does not make the picture: a damaged or huge remark never decides over a photo.

Pillow reads all metadata before the picture and gives up on some of it: more than a megabyte of PNG texts, a wrong
checksum of a remark, a marker that is shorter than its kind. So it gets none; what counts of it, the colour profile and
the EXIF block, is taken out here, and is nothing where it is damaged.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

MAX_PROFILE_BYTES = 4 << 20  # the largest printers' profiles have 3 MB; unpacked, a PNG's may claim any size
_PNG_START = b"\x89PNG\r\n\x1a\n"
# PNG, section 11.3: the only other chunk by which colours look different is transparency. The chunks of animations are
# left out as well: the first picture is the one in IDAT.
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length: TEM, RST0 to RST7, SOI
_SOS, _EOI, _COMMENT = 0xDA, 0xD9, 0xFE
# An AVIF's entry of its EXIF item (ISO 14496-12, 8.11.6): version 2 or 3, flags, the item's number, protection, type.
# How such a picture is turned stands elsewhere, and libavif refuses it whole where this block is damaged.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4}).{2})Exif", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Stripped:
    """A file's picture, and its metadata apart; data: what is decoded; profile: ICC; exif: the block, or None."""

    data: bytes
    profile: bytes | None = None
    exif: bytes | None = None


def stripped(kind: str, data: bytes) -> Stripped:
    """Return a file of this format without its metadata; other formats are as they are."""
    if kind == "JPEG":
        return _stripped_jpeg(data)
    if kind == "AVIF":
        return Stripped(_AVIF_EXIF.sub(rb"\1none", data, count=1))
    return _stripped_png(data) if kind in {"PNG", "APNG"} else Stripped(data)


def _stripped_jpeg(data: bytes) -> Stripped:
    """Leave out the APP and COM segments before the first scan (ITU T.81, annex B) but those that say how colours lie.

    Those are JFIF's and Adobe's, where they are whole. After the first thing that is no segment all stays as it is.
    """
    kept, position, start = [], 2, 0
    profiles: dict[int, bytes] = {}
    exif: bytes | None = None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _ALONE:  # a filling byte
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if marker in (_SOS, _EOI) or end < position + 4 or end > len(data):
            break
        if marker == _COMMENT or 0xE0 <= marker <= 0xEF:
            content = data[position + 4 : end]
            if marker == 0xE1 and exif is None and content.startswith(b"Exif\0\0"):
                exif = content
            elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
                profiles.setdefault(content[12], content[14:])
            jfif = marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14
            if not jfif and not (marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12):
                kept.append(data[start:position])
                start = end
        position = end
    if start == 0:
        return Stripped(data)
    whole = sorted(profiles) == list(range(1, len(profiles) + 1))
    profile = b"".join(profiles[number] for number in sorted(profiles)) if whole else b""
    return Stripped(b"".join([*kept, data[start:]]), profile or None, exif)


def _stripped_png(data: bytes) -> Stripped:
    """Leave out all chunks but those of the picture; damaged ones among these are found by `containers.incomplete`."""
    kept, position, start = [], len(_PNG_START), 0
    profile: bytes | None = None
    exif: bytes | None = None
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if name not in _PNG_KEPT or (name == b"tRNS" and not _checks(data, position, end)):
            if name in (b"iCCP", b"eXIf") and _checks(data, position, end):
                content = data[position + 8 : end - 4]
                profile = _unpacked(content) if name == b"iCCP" else profile
                exif = content if name == b"eXIf" else exif
            kept.append(data[start:position])
            start = end
        position = end
        if name == b"IEND":
            break
    return Stripped(b"".join([*kept, data[start:]]) if start else data, profile, exif)


def _checks(data: bytes, position: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[position + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _unpacked(content: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk (name, 0, method 0, zlib), None where it is damaged or too large."""
    _, separator, rest = content.partition(b"\0")
    if not separator or rest[:1] != b"\0":
        return None
    unpacking = zlib.decompressobj()
    try:
        profile = unpacking.decompress(rest[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacking.eof else None
