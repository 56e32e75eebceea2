"""Render a table of jobs and save the images: python csv_campaign.py campaign.csv out/"""

import sys
from pathlib import Path

from farm.client import Farm

table, directory = Path(sys.argv[1]), Path(sys.argv[2])
directory.mkdir(exist_ok=True)

with Farm() as farm:
    # The key makes it safe to run this again: the same table gives the same batch.
    batch = farm.submit_batch(table, name=table.stem, task="text-to-image", idempotency_key=f"campaign-{table.stem}")
    print(f"{batch.id}: {batch.total} jobs")
    farm.wait_batch(batch)
    for result in farm.results(batch.id):
        if result.error is not None:
            print(f"{result.custom_id} failed: {result.error.message}")
        for output in result.outputs:
            (directory / f"{result.custom_id}{output.suffix}").write_bytes(farm.download(output))
            print(f"{result.custom_id} rendered")
