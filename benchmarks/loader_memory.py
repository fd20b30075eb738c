#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How much memory the fast loader needs, in a process of its own: one JSON line.

    python benchmarks/loader_memory.py DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch  # noqa: F401  what any training process has in memory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BATCHES_PER_EPOCH = 8


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str] | None = None) -> int:
    """Read batches of bytes for some epochs; the first one fills the buffers."""
    before = resident()
    from benchmarks.loader_contenders import BatchRunner, epochs, index_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=50)
    args = parser.parse_args(argv)
    index = index_of(args.directory, at_least=BATCHES_PER_EPOCH * args.batch_size)
    workers = len(os.sched_getaffinity(0))
    batches = epochs("fast", index, args.image_size, args.batch_size, workers)
    runner = BatchRunner(batches, args.batch_size)
    steps = len(index) // args.batch_size
    sizes: list[list[int]] = []
    for _ in range(args.epochs):
        sizes.append([])
        for _ in range(steps):
            runner.run(1)
            sizes[-1].append(resident() - before)
    mib = [max(epoch) / 2**20 for epoch in sizes]
    record = {
        "batch_size": args.batch_size, "image_size": args.image_size, "threads": workers,
        "epochs": args.epochs, "batches_per_epoch": steps, "peak_mib": max(mib),
        "first_epoch_mib": mib[0], "tenth_epoch_mib": mib[min(9, len(mib) - 1)],
        "last_epoch_mib": mib[-1],
    }  # fmt: skip
    print(json.dumps({key: round(value, 1) for key, value in record.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
