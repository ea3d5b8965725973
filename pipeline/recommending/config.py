"""What is asked of a table of events."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..index.fusion import rank_depth

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


class RecommendConfig(BaseModel):
    """Which columns the events have, and how much is written of them.

    customer, item: names of columns. weight, time: of columns too; None: `weight` and `time` where the table has them.
    half_life: the age at which an event counts half as much as the customer's newest one, where there are times: a
    number and h, d or w. top: rows a customer or an item, at most. most_items: of a customer's items those with the
    most weight ask, at most so many. again: offer also what a customer has had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    customer: str = Field(default="customer", min_length=1)
    item: str = Field(default="item", min_length=1)
    weight: str | None = Field(default=None, min_length=1)
    time: str | None = Field(default=None, min_length=1)
    half_life: str = "90d"
    top: int = Field(default=20, ge=1, le=1000)
    most_items: int = Field(default=50, ge=1, le=1000)
    again: bool = False

    @field_validator("half_life")
    @classmethod
    def _is_a_duration(cls, text: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,5}[hdw]", text):
            raise ValueError(f"half_life is {text!r}; write a number and h, d or w, for example 90d")
        return text

    @property
    def half_life_s(self) -> int:
        """The half-life in seconds."""
        return int(self.half_life[:-1]) * _SECONDS[self.half_life[-1]]

    @property
    def depth(self) -> int:
        """How many items of each separate answer are fused, as `Release.similar_to_many` does for k = top."""
        return rank_depth(self.top)
