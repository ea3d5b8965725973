"""Items by number: a table in order, which is what a refresh writes, and the same rows in any other order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.index.items import ItemTable


def test_a_table_in_order_and_the_same_rows_in_another_know_the_same_items() -> None:
    generator = np.random.default_rng(0)
    ids = sorted(f"{'äbz'[n % 3]}{n % 40}" for n in generator.integers(0, 200, 300).tolist())
    prices = generator.integers(0, 9, 300).tolist()
    chunks = pa.chunked_array([ids[:7], [], ids[7:]])
    table = pa.table({"item_id": chunks, "price": pa.array(prices)})
    mixed = generator.permutation(300)
    for order in (np.arange(300), mixed):
        held = ItemTable(table.take(pa.array(order)))
        assert held.item_ids() == sorted(set(ids), key=str.encode)
        for number, item_id in enumerate(held.item_ids()):
            rows = held.rows_of(number).tolist()
            assert rows == [row for row, at in enumerate(order.tolist()) if ids[at] == item_id]
            assert held.groups.numbers[rows].tolist() == [number] * len(rows)
            assert held.find(item_id) == number
            assert held.attributes_of(number) == {"price": prices[order[rows[0]]]}
        assert held.find("nobody") is None
    assert len(ItemTable(table.slice(0, 0))) == 0
