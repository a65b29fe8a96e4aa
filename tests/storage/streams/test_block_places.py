"""Where the blocks of a label set lie: every view has its own, in the order of parts."""

from __future__ import annotations

import pyarrow as pa
import pytest

from storage.parts_table import PARTS_SCHEMA
from storage.streams.block_places import BlockPlaces


def part(name, blocks):
    return {
        "unit_name": name,
        "unit_digest": "0" * 64,
        "request": "0" * 64,
        "num_samples": 7,
        "first_view": 0,
        "num_views": 2,
        "tar_name": f"{name}.tar",
        "tar_bytes": 1,
        "tar_sha256": "0" * 64,
        "samples": {"offset": 0, "num_bytes": 1, "checksum": "0" * 16},
        "blocks": [
            {
                "offset": offset,
                "num_bytes": offset + 1,
                "checksum": f"{offset:016x}",
                "view": view,
                "first_sample": first,
                "num_samples": 4,
                "num_rows": rows,
            }
            for view, first, rows, offset in blocks
        ],
    }


PARTS = [
    part("a", [(0, 0, 4, 10), (0, 4, 3, 20), (1, 0, 2, 30), (1, 4, 3, 40)]),
    part("b", []),
    part("c", [(1, 0, 1, 50)]),
    part("d", [(0, 0, 4, 60), (1, 0, 4, 70)]),
]


@pytest.mark.parametrize("chunks", [[PARTS], [PARTS[:1], PARTS[1:3], PARTS[3:]]])
def test_blocks_of_a_view_come_in_the_order_of_parts(chunks):
    table = pa.concat_tables([pa.Table.from_pylist(rows, schema=PARTS_SCHEMA) for rows in chunks])
    places = BlockPlaces(table, num_views=3)
    expected = {0: [(0, 10), (0, 20), (3, 60)], 1: [(0, 30), (0, 40), (2, 50), (3, 70)], 2: []}
    for view, blocks in expected.items():
        found = [places.place(view=view, block_id=block_id) for block_id in range(len(places.rows(view=view)))]
        assert [(place.part, place.extent.offset) for place in found] == blocks
        assert [place.num_rows for place in found] == places.rows(view=view).tolist()
        assert [places.part(view=view, block_id=block_id) for block_id in range(len(found))] == [index for index, _ in blocks]
    place = places.place(view=0, block_id=1)
    assert (place.first_sample, place.num_samples, place.num_rows) == (4, 4, 3)
    assert (place.extent.num_bytes, place.extent.checksum) == (21, f"{20:016x}")


def test_a_label_set_without_parts_has_no_blocks():
    places = BlockPlaces(pa.Table.from_pylist([], schema=PARTS_SCHEMA), num_views=1)
    assert places.rows(view=0).tolist() == []
