"""One self-contained HTML page of neighbours: no scripts, no files beside it, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_PICTURE = "data:image/jpeg;base64,"
_LONGEST = 1_000  # characters of a name or value; some catalogues hold a page of HTML in a cell
_JPEG_QUALITY = 92  # a page of a hundred pictures of 64 px then has about a quarter of the bytes of lossless ones


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and its words. pixels: uint8 RGB [h, w, 3]; same: of the query's category, None where unknown."""

    pixels: npt.NDArray[np.uint8]
    caption: str
    detail: str = ""
    same: bool | None = None

    def under(self, heading: str) -> Picture:
        """Return the picture with a heading before its words."""
        return replace(self, caption=f"{heading}: {self.caption}")


@dataclass(frozen=True, slots=True)
class NeighbourRow:
    """A query and its neighbours, nearest first."""

    query: Picture
    neighbours: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a page shows; an empty member leaves its section out. facts: (name, value)."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    neighbours: Sequence[NeighbourRow] = ()


def render_page(data: ReportData) -> bytes:
    """Return the page, UTF-8; the same bytes for the same data.

    Raises ValueError for pixels that are not uint8 [h, w, 3].
    """
    marked = any(picture.same is not None for row in data.neighbours for picture in row.neighbours)
    return template("page.html.j2").render(data=data, marked=marked).encode("utf-8")


def _data_uri(picture: Picture) -> str:
    from PIL import Image

    pixels = np.asarray(picture.pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"pixels of {picture.caption!r} are {pixels.dtype} {list(pixels.shape)}; a page takes uint8 [h, w, 3]"
        )
    buffer = io.BytesIO()
    # 4:4:4: colour at half resolution would blur what a reconstruction is judged by.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return _PICTURE + base64.b64encode(buffer.getvalue()).decode("ascii")


def _in_short(value: object) -> object:
    """Return what a page prints as it is, of a text that would fill it the beginning and the length."""
    # Markup, a subclass of str, is what a macro made of values that came through here.
    if type(value) is str and len(value) > _LONGEST and not value.startswith(_PICTURE):
        return f"{value[:_LONGEST]}... ({len(value):,} characters)"
    return value


def _breakable(text: str) -> Markup:
    """Return a name, escaped, that may go on in the next line after `_` and `.`."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[_.])", str(_in_short(text))))


def _number(value: float | None) -> str:
    """Return a number as people read it: whole ones in full, others to four digits, "" for none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:,.4g}"


@functools.cache
def template(name: str) -> Template:
    """Return a page's template; every page escapes what it is given and refuses names that it is not.

    Raises ConfigError where Jinja is not installed, as in a reader's environment.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ConfigError(
            "pages need the package jinja2, which is not installed; run `pip install jinja2`, or ask for another form "
            "than .html"
        ) from error

    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_in_short,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["number"] = _number
    environment.filters["breakable"] = _breakable
    environment.filters["percent"] = lambda share: f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
    return environment.get_template(name)
