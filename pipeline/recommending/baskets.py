"""Customers as baskets: what each has had, and how much each of these items counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..index.latents import Float64, Rows
from ..ordering import as_numpy, positions_in_runs, ranks

_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Baskets:
    """Baskets of the c customers of one bucket.

    customers: their keys, in the order of text. starts: int64 [c + 1]; items, shares: what customer i asks with is
    [starts[i], starts[i + 1]), by item number; shares are above 0 and add up to 1. had: int64, sorted, customer *
    num_items + item of all that they have had. num_items: of the release. repeated: events beyond the first of the
    same customer and item. trimmed: customers with more items than ask for them, be it that these were too many, or
    that they are so old that their share is 0.
    """

    customers: list[str]
    starts: Rows
    items: Rows
    shares: Float64
    had: Rows
    num_items: int
    repeated: int
    trimmed: int

    @property
    def owners(self) -> Rows:
        """The customer of every item."""
        return np.repeat(np.arange(len(self.customers)), np.diff(self.starts))

    def had_by(self, customer: int) -> Rows:
        """Return the numbers of the items that a customer has had."""
        edges = np.searchsorted(self.had, [customer * self.num_items, (customer + 1) * self.num_items])
        return self.had[edges[0] : edges[1]] - customer * self.num_items

    def holds(self, keys: Rows) -> np.ndarray:
        """Return bool, of the shape of `keys` (customer * num_items + item): whether the customer has had the item."""
        if not len(self.had):
            return np.zeros(keys.shape, np.bool_)
        places = np.searchsorted(self.had, keys)
        found: np.ndarray = self.had[np.minimum(places, len(self.had) - 1)] == keys
        return found


def baskets_of(events: pa.Table, num_items: int, *, half_life_s: int, most_items: int) -> Baskets:
    """Return the baskets of all customers of some events: customer, item (number, -1: none), weight, time_us.

    An item counts with the sum of its events' weights, each halved for every half-life that it is older than the
    customer's newest event. The `most_items` that count most ask, ties to the lower number.
    """
    who, customers = ranks(events["customer"])
    items, weights, moments = (as_numpy(events[name]) for name in ("item", "weight", "time_us"))
    known = items >= 0
    who, items, weights, moments = who[known], items[known], weights[known], moments[known]
    newest = np.full(len(customers), np.iinfo(np.int64).min)
    np.maximum.at(newest, who, moments)
    heaviest = np.zeros(len(customers))
    np.maximum.at(heaviest, who, weights)
    # Only ratios within a customer count, so the largest is 1: no sum overflows, and the newest never fades away.
    ages = (newest[who].astype(np.float64) - moments) / (half_life_s * _US)
    counted = weights / heaviest[who] * np.exp2(-ages)
    had, places = np.unique(who * num_items + items, return_inverse=True)
    sums = np.bincount(places, weights=counted, minlength=len(had)).astype(np.float64)
    owners = had // num_items
    order = np.lexsort((had, -sums, owners))
    starts = np.ones(len(order), np.bool_)
    starts[1:] = owners[order][1:] != owners[order][:-1]
    asking = np.sort(order[(positions_in_runs(starts) < most_items) & (sums[order] > 0)])
    totals = np.bincount(owners[asking], weights=sums[asking], minlength=len(customers))
    shares = sums[asking] / totals[owners[asking]]
    counts = np.bincount(owners[asking], minlength=len(customers))
    all_counts = np.bincount(owners, minlength=len(customers))
    return Baskets(
        customers=customers,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=had[asking] % num_items if num_items else had[asking],
        shares=shares,
        had=had,
        num_items=num_items,
        repeated=int(len(items) - len(had)),
        trimmed=int(np.count_nonzero(all_counts > counts)),
    )


def ranges_of(starts: Rows, most: int) -> list[tuple[int, int]]:
    """Return ranges [first, last) of customers with about `most` entries each, at least one customer."""
    ranges, first, count = [], 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + max(1, most), side="right")) - 1
        last = min(count, max(first + 1, last))
        ranges.append((first, last))
        first = last
    return ranges
