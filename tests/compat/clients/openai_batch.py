"""The official client of OpenAI for Python, against a farm: files and batches."""

import base64
import io
import json
import os
import time
import urllib.request

import openai
from checks import refused
from openai import OpenAI
from PIL import Image

client = OpenAI(base_url=os.environ["FARM_URL"] + "/compat/openai/v1", api_key=os.environ["FARM_KEY"])
URL = "/v1/images/generations"


def line(custom_id, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}).encode() + b"\n"


def uploaded(content):
    return client.files.create(file=("night.jsonl", io.BytesIO(content)), purpose="batch")


def over(batch_id):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "cancelled", "failed", "expired"):
            return batch
        time.sleep(0.1)
    raise AssertionError("the batch does not end")


def told(file_id):
    return {one["custom_id"]: one for one in map(json.loads, client.files.content(file_id).text.splitlines())}


content = b"".join(
    [
        line("a", prompt="a red ball", size="64x64", n=2, seed=5),
        line("b", prompt="a blue cube", size="64x64", response_format="b64_json"),
        line("c", prompt="please fail", size="64x64"),
        line("d", prompt="x", size="64x64", quality="hd"),
        line("e", prompt="x", size="8x8"),
        line("a", prompt="again", size="64x64"),
    ]
)
file = uploaded(content)
assert (file.object, file.purpose, file.filename, file.bytes) == ("file", "batch", "night.jsonl", len(content))
assert client.files.retrieve(file.id) == file
assert client.files.content(file.id).read() == content

batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"night": "first"})
assert (batch.object, batch.input_file_id, batch.metadata) == ("batch", file.id, {"night": "first"})
batch = over(batch.id)
assert batch.status == "completed"
counts = batch.request_counts
assert (counts.total, counts.completed, counts.failed) == (6, 2, 4)

answers = told(batch.output_file_id)
assert set(answers) == {"a", "b"}
assert answers["a"]["error"] is None
assert answers["a"]["response"]["status_code"] == 200
first = answers["a"]["response"]["body"]["data"]
assert [image["seed"] for image in first] == [5, 6]
fetched = urllib.request.urlopen(first[1]["url"]).read()
second = base64.b64decode(answers["b"]["response"]["body"]["data"][0]["b64_json"])
assert Image.open(io.BytesIO(fetched)).size == Image.open(io.BytesIO(second)).size == (64, 64)

refusals = [json.loads(one) for one in client.files.content(batch.error_file_id).text.splitlines()]
assert sorted(one["custom_id"] for one in refusals) == ["a", "c", "d", "e"]
by_name = {one["custom_id"]: one["response"] for one in refusals}
assert by_name["c"]["body"]["error"]["code"] == "render_failed"
assert by_name["d"]["body"]["error"]["param"] == "quality"
assert (by_name["d"]["status_code"], by_name["e"]["status_code"]) == (400, 400)
assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"

# lists, page by page
other = uploaded(line("z", prompt="wait for ever", size="64x64"))
assert [one.id for one in client.files.list(limit=1)] == [other.id, file.id]
assert [one.id for one in client.files.list(purpose="batch_output")] == [batch.output_file_id, batch.error_file_id]
waiting = client.batches.create(input_file_id=other.id, endpoint=URL, completion_window="24h")
assert [one.id for one in client.batches.list(limit=1)] == [waiting.id, batch.id]
assert waiting.output_file_id is None

# canceling
canceled = client.batches.cancel(waiting.id)
assert canceled.status in ("cancelling", "cancelled")
canceled = over(waiting.id)
assert canceled.status == "cancelled"
assert told(canceled.error_file_id)["z"]["error"]["code"] == "batch_cancelled"
with refused(openai.BadRequestError) as caught:
    client.batches.cancel(batch.id)
assert caught.error.body["code"] == "conflict"

# what cannot be taken
for text in (b"not json\n", json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat", "body": {}}).encode()):
    bad = uploaded(text)
    useless = client.batches.create(input_file_id=bad.id, endpoint=URL, completion_window="24h")
    assert (useless.status, useless.request_counts.failed) == ("completed", 1)
    assert len(client.files.content(useless.error_file_id).text.splitlines()) == 1
for arguments in ({"endpoint": "/v1/embeddings"}, {"completion_window": "1h"}, {"input_file_id": "file_nope"}):
    wanted = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"} | arguments
    with refused((openai.BadRequestError, openai.NotFoundError)):
        client.batches.create(**wanted)
with refused(openai.BadRequestError) as caught:
    client.files.create(file=b"x", purpose="assistants")
assert caught.error.body["param"] == "purpose"

assert client.files.delete(file.id).deleted
with refused(openai.NotFoundError):
    client.files.retrieve(file.id)
assert set(told(batch.output_file_id)) == {"a", "b"}  # does not need the file that it came from
print(batch.id)
