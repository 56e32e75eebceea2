"""The official client of OpenAI for Python, against a farm: images and models."""

import base64
import io
import os
import urllib.request

import openai
from checks import refused
from openai import OpenAI
from PIL import Image

client = OpenAI(base_url=os.environ["FARM_URL"] + "/compat/openai/v1", api_key=os.environ["FARM_KEY"])


def opened(data):
    return Image.open(io.BytesIO(data))


def png(mode, colour):
    out = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(out, "PNG")
    return out.getvalue()


def refusal(kind, **arguments):
    with refused(kind) as caught:
        client.images.generate(**arguments)
    return caught.error.body


assert [model.id for model in client.models.list()] == ["starter"]
assert client.models.retrieve("starter").owned_by == "farm"

# without a format each image has both
made = client.images.generate(
    prompt="a red ball", n=2, size="128x64", model="starter", extra_body={"seed": 7, "steps": 3, "guidance_scale": 1.5}
)
assert [image.seed for image in made.data] == [7, 8]
assert made.size == "128x64"
for image in made.data:
    sent = base64.b64decode(image.b64_json)
    assert opened(sent).size == (128, 64)
    assert urllib.request.urlopen(image.url).read() == sent

only = client.images.generate(prompt="a red ball", size="auto", response_format="b64_json", quality="auto", user="u1")
assert only.data[0].url is None
assert opened(base64.b64decode(only.data[0].b64_json)).size == (128, 128)
only = client.images.generate(prompt="a red ball", response_format="url", output_format="png", moderation="low")
assert only.data[0].b64_json is None

image = png("RGB", "red")
mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
out = io.BytesIO()
mask.save(out, "PNG")
out.seek(0)
edited = client.images.edit(
    image=("in.png", image), mask=("mask.png", out), prompt="a blue ball", extra_body={"seed": 3}
)
assert edited.data[0].seed == 3
varied = client.images.edit(image=image, prompt="a blue ball", n=1, extra_body={"strength": 0.5, "steps": 4})
assert opened(base64.b64decode(varied.data[0].b64_json)).size == (64, 64)

# refusals, in OpenAI's shape, each naming the field as the client knows it
body = refusal(openai.BadRequestError, prompt="x", n=17)
assert body["type"] == "invalid_request_error"
assert body["param"] == "n", body
assert refusal(openai.BadRequestError, prompt="x", size="big")["param"] == "size"
assert refusal(openai.BadRequestError, prompt="x", quality="high")["param"] == "quality"
assert refusal(openai.BadRequestError, prompt="x", extra_body={"sampler": "x"})["param"] == "sampler"
assert refusal(openai.BadRequestError, prompt="x", model="dall-e-3")["param"] == "model"
assert refusal(openai.UnprocessableEntityError, prompt="please fail")["code"] == "render_failed"
with refused(openai.BadRequestError) as caught:
    client.images.edit(image=image, mask=png("RGB", "white"), prompt="x")
assert caught.error.body["param"] == "mask"
with refused(openai.NotFoundError) as caught:
    client.chat.completions.create(model="starter", messages=[])
assert "not a part" in caught.error.body["message"]
for key in ("farm_0", "sk-nonsense"):
    with refused(openai.AuthenticationError) as caught:
        client.with_options(api_key=key).models.list()
    assert caught.error.body["code"] == "invalid_api_key"

# a job that runs goes on when its client hangs up
with refused(openai.APITimeoutError):
    client.with_options(timeout=1.0, max_retries=0).images.generate(prompt="slow")
