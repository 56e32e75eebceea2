"""The official client of Replicate, against a farm."""

import io
import json
import os
import sys

import httpx
import replicate
from checks import refused
from PIL import Image
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.webhook import InvalidSignatureError, Webhooks

client = Client(api_token=os.environ["FARM_KEY"], base_url=os.environ["FARM_URL"] + "/compat/replicate")
client.poll_interval = 0.05
hook = sys.argv[1]


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    out.seek(0)
    return out


def size(url):
    return Image.open(io.BytesIO(FileOutput(url, client).read())).size


model = client.models.get("farm/starter")
assert (model.owner, model.name) == ("farm", "starter")
assert [one.name for one in client.models.list()] == ["starter"]
version = model.latest_version
assert version.id == model.versions.get(version.id).id

# run: by name, and by version; the input's images decide the task
urls = client.run(
    "farm/starter", input={"prompt": "a red ball", "width": 64, "height": 128, "num_outputs": 2, "seed": 7}
)
assert [size(url) for url in urls] == [(64, 128)] * 2
(url,) = client.run(
    f"farm/starter:{version.id}", input={"prompt": "a blue ball", "image": png("red"), "prompt_strength": 0.5}
)
assert size(url) == (64, 64)
white = Image.new("L", (64, 64), 255)
out = io.BytesIO()
white.save(out, "PNG")
out.seek(0)
(url,) = client.run(
    "farm/starter",
    input={"prompt": "a ball", "image": png("red"), "mask": out, "scheduler": "K_EULER", "num_inference_steps": 3},
    file_encoding_strategy="base64",
)
assert size(url) == (64, 64)
with refused(httpx.HTTPStatusError) as caught:
    FileOutput(url.replace("signature=", "signature=0"), client).read()
assert caught.error.response.status_code == 404
with refused(ModelError) as caught:
    client.run("farm/starter", input={"prompt": "please fail"})
assert caught.error.prediction.error == "it was not to be"

# a prediction's life
slow = client.predictions.create(version=version, input={"prompt": "slow", "width": 64, "height": 64}, wait=1)
assert slow.status == "starting"  # what the clients take for "ask again"
while slow.status == "starting" or not (slow.progress and slow.progress.current):
    slow.reload()
far = (slow.status, slow.progress.current, slow.progress.total, slow.progress.percentage)
assert far == ("processing", 10, 20, 0.5), far
slow.cancel()
slow.wait()
assert slow.status == "canceled"
waiting = client.predictions.create(model="farm/starter", input={"prompt": "wait"})
assert waiting.status == "starting"
waiting.cancel()
assert waiting.status == "canceled"
again = client.predictions.get(waiting.id)
assert (again.status, again.input["prompt"], again.version) == ("canceled", "wait", version.id)
assert waiting.id in [one.id for one in client.predictions.list().results]

# webhooks, with a filter and without one
for path, events in (("all", None), ("ends", ["completed"]), ("starts", ["start"])):
    filtered = {} if events is None else {"webhook_events_filter": events}
    hooked = client.predictions.create(
        model="farm/starter", input={"prompt": f"a ball {path}"}, webhook=f"{hook}/{path}", **filtered
    )
    hooked.wait()
    assert hooked.status == "succeeded"
secret = client.webhooks.default.secret()
assert secret.key.startswith("whsec_")
print("sent", flush=True)
for line in sys.stdin:  # what the receiver got
    received = json.loads(line)
    headers, body = received["headers"], received["body"]
    Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=300)
    with refused(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body.replace("ball", "cube"), secret=secret)
    told = replicate.prediction.Prediction(**json.loads(body))
    assert told.model == "farm/starter"
    if told.status == "succeeded":
        assert Image.open(io.BytesIO(FileOutput(told.output[0], Client(api_token=None)).read())).size == (128, 128)
    assert client.predictions.get(told.urls["get"].rpartition("/")[2]).id == told.id
    print(told.status, flush=True)

# refusals
for wrong, field in (
    ({"prompt": "x", "width": 7}, "width"),
    ({"prompt": "x", "num_outputs": 99}, "num_outputs"),
    ({"prompt": "x", "strange": 1}, "strange"),
    ({"prompt": "x", "refine": "expert_ensemble_refiner"}, "refine"),
    ({}, "prompt"),
):
    with refused(ReplicateError) as caught:
        client.run("farm/starter", input=wrong)
    assert caught.error.status == 422
    assert caught.error.detail.startswith(f"{field}: "), caught.error
with refused(ReplicateError) as caught:
    client.run("stability-ai/sdxl", input={"prompt": "x"})
assert caught.error.status == 404
assert "farm/starter" in caught.error.detail
with refused(ReplicateError) as caught:
    client.predictions.create(model="farm/starter", input={"prompt": "x"}, webhook="ftp://x")
assert caught.error.detail.startswith("webhook: ")
with refused(ReplicateError) as caught:
    Client(api_token="farm_0", base_url=os.environ["FARM_URL"] + "/compat/replicate").models.list()
assert caught.error.status == 401
