"""What a request asks, checked before any work: parameters, bodies and the release that it expects."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from starlette.requests import Request

from ..errors import RequestRefused
from ..reader import Release
from .config import ServeConfig
from .current import Current

Where = dict[str, Any]
_M = TypeVar("_M", bound=BaseModel)
EXPECTED = {"release_id": "expect-release-id", "model_id": "expect-model-id"}  # query parameter: header
_SHOWN_PROBLEMS = 3


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    k: int = Field(default=10, ge=1, description="how many neighbours")
    where: Where | None = Field(
        default=None,
        description='only items that fit: {"category": "Shoes"}, a list means any, {"min": a, "max": b} a range, '
        '{"sid_prefix": [1, 2]} the first codes of semantic IDs',
    )


class _Near(_Body):
    min_score: FiniteFloat | None = Field(default=None, description="only items of at least this score")
    min_quantile: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = Field(
        default=None, description="only items nearer than this share of random pairs of items, as 0.999"
    )


class VectorSearch(_Near):
    """Vectors to search for: rows of latents of the release's own model."""

    vectors: Annotated[list[list[FiniteFloat]], Field(min_length=1, description="one list of numbers a query")]
    log_vars: Annotated[list[list[FiniteFloat]], Field(min_length=1)] | None = Field(
        default=None, description="logarithms of variances, one list a query; where the release's metric compares them"
    )


class Basket(_Body):
    """Items that are asked together."""

    item_ids: Annotated[list[str], Field(min_length=1)]
    fusion: Literal["rrf", "min", "soft_min", "barycentre"] = "rrf"
    weights: Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1)] | None = Field(
        default=None, description="one positive number for each item; `min` takes none"
    )


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query string. schema: JSON schema of its value."""

    name: str
    schema: Mapping[str, Any]
    means: str


K = Parameter("k", {"type": "integer", "minimum": 1, "default": 10}, "How many neighbours.")
WHERE = Parameter(
    "where",
    {"type": "object"},
    'Only items that fit, a JSON object: {"category": "Shoes"}, a list means any, {"min": a, "max": b} a range, '
    '{"sid_prefix": [1, 2]} the first codes of semantic IDs.',
)
MIN_SCORE = Parameter("min_score", {"type": "number"}, "Only items of at least this score.")
MIN_QUANTILE = Parameter(
    "min_quantile",
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "Only items nearer than this share of random pairs of items: 0.999 is nearer than 999 of 1,000.",
)
CATEGORY = Parameter("category", {"type": "string"}, "What the photo shows, for a model that is told categories.")
LIMIT = Parameter("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}, "How many at most.")
PREFIX = Parameter("prefix", {"type": "string"}, "What the item_ids begin with.")
CODES = Parameter(
    "prefix", {"type": "string", "pattern": r"^([0-9]{1,9}(,[0-9]{1,9})*)?$", "default": ""},
    "The first codes, level by level: 1,2. Without it, all items.",
)  # fmt: skip
BESIDE = Parameter(
    "beside", {"type": "boolean", "default": False}, "Also what the service's second release answers (--beside)."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, its body read. release: the one that answers, whatever is swapped meanwhile."""

    release: Release
    photos: bool
    config: ServeConfig
    item_id: str
    query: Mapping[str, str]
    media_type: str
    body: bytes
    second: Current | None = None

    def k(self) -> int:
        """Return the parameter k. Raises RequestRefused."""
        return self.checked_k(whole(self.query, K, most=None))

    def checked_k(self, k: int) -> int:
        """Return k. Raises RequestRefused when it is more than the service answers."""
        return self.at_most("k", k, self.config.max_k, "--max-k")

    def at_most(self, what: str, value: int, most: int, option: str) -> int:
        """Return a number. Raises RequestRefused when it is above the limit that an option of the service sets."""
        if value > most:
            remedy = f"ask for less, or give `codebooks serve` a larger {option}"
            raise RequestRefused(422, f"{what} is {value:,}, and {most:,} is the most that is answered; {remedy}")
        return value

    def limit(self) -> int:
        """Return the parameter limit. Raises RequestRefused."""
        return whole(self.query, LIMIT, most=LIMIT.schema["maximum"])

    def codes(self) -> list[int]:
        """Return the parameter prefix as codes. Raises RequestRefused."""
        text = self.query.get(CODES.name, "")
        if not re.fullmatch(CODES.schema["pattern"], text, re.ASCII):
            raise RequestRefused(422, f"prefix is {text[:80]!r}; give whole numbers with commas between them, as 1,2")
        return [int(code) for code in text.split(",") if code]

    def beside(self) -> Release | None:
        """Return the second release where the request asks for it. Raises RequestRefused."""
        text = self.query.get(BESIDE.name, "false")
        if text not in ("true", "false"):
            raise RequestRefused(422, f"beside is {text[:80]!r}; it must be true or false")
        if text == "false":
            return None
        if self.second is None:
            raise RequestRefused(
                422, "this service has no second release; leave beside out, or start `codebooks serve` with "
                "--beside RELEASE_OR_CHANNEL"
            )  # fmt: skip
        served = self.second.served
        if served is None:
            raise RequestRefused(503, f"the second release is not open: {self.second.problem}")
        return served.release

    def thresholds(self) -> dict[str, float | None]:
        """Return the parameters min_score and min_quantile, None where they are not given. Raises RequestRefused."""
        return {each.name: number(self.query, each) for each in (MIN_SCORE, MIN_QUANTILE)}

    def where(self) -> Where | None:
        """Return the parameter where. Raises RequestRefused."""
        text = self.query.get("where")
        if text is None:
            return None
        try:
            return TypeAdapter(Where).validate_json(text)
        except ValidationError as error:
            raise RequestRefused(
                422, f"where is {text[:200]!r}, no JSON object ({_first(error)}); write for example "
                'where={"category": "Shoes"}, percent-encoded'
            ) from None  # fmt: skip

    def model(self, kind: type[_M]) -> _M:
        """Return the body as what it has to be. Raises RequestRefused."""
        try:
            return kind.model_validate_json(self.body)
        except ValidationError as error:
            fields = ", ".join(kind.model_fields)
            raise RequestRefused(
                422, f"the body is no {kind.__name__} in JSON with the fields {fields}: {_first(error)}; "
                "see /openapi.json"
            ) from None  # fmt: skip


def whole(query: Mapping[str, str], parameter: Parameter, *, most: int | None) -> int:
    """Return a parameter that is a whole number of at least 1. Raises RequestRefused."""
    text = query.get(parameter.name)
    if text is None:
        return int(parameter.schema["default"])
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if value < 1 or (most is not None and value > most):
        allowed = "of at least 1" if most is None else f"from 1 to {most:,}"
        raise RequestRefused(422, f"{parameter.name} is {text[:80]!r}; it must be a whole number {allowed}")
    return value


def number(query: Mapping[str, str], parameter: Parameter) -> float | None:
    """Return a parameter that is a finite number, None where it is not given. Raises RequestRefused."""
    text = query.get(parameter.name)
    if text is None:
        return None
    try:
        return float(TypeAdapter(FiniteFloat).validate_strings(text))
    except ValidationError:
        raise RequestRefused(422, f"{parameter.name} is {text[:80]!r}; it must be a finite number") from None


def checked_query(request: Request, parameters: tuple[Parameter, ...]) -> dict[str, str]:
    """Return the query string's parameters. Raises RequestRefused for one that is unknown or given twice."""
    known = [*(each.name for each in parameters), *EXPECTED]
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise RequestRefused(422, f"there is no parameter {name[:80]!r} here; known: {', '.join(known)}")
        if name in found:
            raise RequestRefused(422, f"the parameter {name} is given twice; give it once")
        found[name] = value
    return found


def check_expected(request: Request, query: Mapping[str, str], release: Release) -> None:
    """Raise RequestRefused 409 when the request names another release or model than the one that would answer."""
    for name, header in EXPECTED.items():
        served = getattr(release, name)
        for wanted in (query.get(name), request.headers.get(header)):
            if wanted is not None and wanted != served:
                raise RequestRefused(
                    409, f"{name} {wanted[:200]!r} is expected, and this service answers from {served!r}; look again "
                    "which one you need (/releases), or leave the expectation out"
                )  # fmt: skip


def check_token(request: Request, config: ServeConfig) -> None:
    """Raise RequestRefused 401 when the service has a token and the request another one, or none."""
    if config.token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(), config.token.get_secret_value().encode())
    if scheme.lower() != "bearer" or not right:
        what = "holds another token" if given else "is missing"
        raise RequestRefused(401, f"the header `Authorization: Bearer TOKEN` {what}; ask who runs this service for one")


def _first(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    texts = [
        f"{'.'.join(str(step) for step in each['loc'])}: {each['msg']}".removeprefix(": ")
        for each in problems[:_SHOWN_PROBLEMS]
    ]
    more = len(problems) - _SHOWN_PROBLEMS
    return "; ".join(texts) + (f"; and {more} more" if more > 0 else "")
