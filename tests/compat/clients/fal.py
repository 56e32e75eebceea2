"""fal's client, against a farm behind HTTPS."""

import os
import time

import fal_client
import httpx
from checks import refused

client = fal_client.SyncClient(key=os.environ["FARM_KEY"])
assert os.environ["FAL_QUEUE_RUN_HOST"].endswith("/compat/fal")

# submit, status, result
handle = client.submit(
    "farm/starter", {"prompt": "a red ball", "image_size": {"width": 64, "height": 128}, "num_images": 2, "seed": 7}
)
result = handle.get()
assert isinstance(handle.status(), fal_client.Completed)
assert [(image["width"], image["height"]) for image in result["images"]] == [(64, 128)] * 2
assert result["seed"] == 7
image = httpx.get(result["images"][0]["url"])
assert image.headers["content-type"] == "image/png"
assert client.result("farm/starter", handle.request_id)["images"][1]["file_size"] > 0

# the line that is held until the image is there
varied = client.run(
    "farm/starter", {"prompt": "x", "image_url": fal_client.encode(image.content, "image/png"), "strength": 0.5}
)
assert varied["images"][0]["content_type"] == "image/png"

# progress and cancel
slow = client.submit("farm/starter", {"prompt": "slow"})
deadline = time.monotonic() + 20
told = []
while "step 10 of 20" not in told:
    assert time.monotonic() < deadline
    status = slow.status(with_logs=True)
    assert isinstance(status, fal_client.Queued | fal_client.InProgress)
    told = [one["message"] for one in getattr(status, "logs", None) or ()]
slow.cancel()
while not isinstance(status := slow.status(), fal_client.Completed):
    assert time.monotonic() < deadline
assert status.error_type == "canceled"
with refused(fal_client.FalClientHTTPError) as caught:
    slow.get()
assert caught.error.status_code == 422

# refusals
for arguments, word in (({"prompt": "x", "image_size": "huge"}, "image_size"), ({"prompt": "x", "odd": 1}, "odd")):
    with refused(fal_client.FalClientHTTPError) as caught:
        client.submit("farm/starter", arguments)
    assert caught.error.response.json()["detail"][0]["loc"] == ["body", word]
with refused(fal_client.FalClientHTTPError) as caught:
    client.submit("fal-ai/flux", {"prompt": "x"})
assert caught.error.status_code == 404
with refused(fal_client.FalClientHTTPError) as caught:
    fal_client.SyncClient(key="nonsense").submit("farm/starter", {"prompt": "x"})
assert caught.error.status_code == 401
