"""Read one epoch of a label set joined with its pictures, in shuffled order. Run as a process of its own, to see its memory."""

from __future__ import annotations

import argparse
import json
import sys

from pydantic import TypeAdapter

from storage.cache import Cache
from storage.config import SourceConfig
from storage.label_set import LabelSet
from storage.order import EpochOrder
from storage.sources import open_source
from storage.streams.label_stream import LabelStream


def main() -> None:
    """Read, and print the number of rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--name", default="benchmark", help="of the label set")
    parser.add_argument("--source", required=True, help="its config as JSON")
    parser.add_argument("--window-blocks", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    arguments = parser.parse_args()
    label_set = LabelSet.open(Cache.at(arguments.cache), name_or_id=arguments.name)
    source = open_source(TypeAdapter(SourceConfig).validate_json(arguments.source))
    stream = LabelStream(label_set, source=source, held_blocks=arguments.window_blocks + 1)
    order = EpochOrder(block_rows=stream.block_rows(epoch=0), seed=0, epoch=0, window_blocks=arguments.window_blocks)
    num_rows = 0
    for start in range(0, order.num_rows, arguments.batch_size):
        block_ids, rows = order.slice(start, min(start + arguments.batch_size, order.num_rows))
        read = stream.read(epoch=0, block_ids=block_ids, rows=rows)
        assert read.soft_labels is not None
        num_rows += len(read.soft_labels)
    sys.stdout.write(json.dumps({"num_rows": num_rows}) + "\n")


if __name__ == "__main__":
    main()
