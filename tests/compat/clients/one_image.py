"""One recipe, really rendered, asked for by three clients: the same bytes come back."""

import base64
import os
from urllib.parse import urlsplit

import webuiapi
from openai import OpenAI
from replicate.client import Client
from replicate.helpers import FileOutput

url, key = os.environ["FARM_URL"], os.environ["FARM_KEY"]
prompt, seed, steps, guidance, side = "a red ball on a blue background", 7, 4, 2.5, 64

openai = OpenAI(base_url=f"{url}/compat/openai/v1", api_key=key)
more = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance}
made = openai.images.generate(prompt=prompt, size=f"{side}x{side}", response_format="b64_json", extra_body=more)
first = base64.b64decode(made.data[0].b64_json)

where = urlsplit(url)
api = webuiapi.WebUIApi(where.hostname, where.port, sampler="DDIM", steps=steps)
api.set_auth("any", key)
made = api.txt2img(prompt=prompt, seed=seed, cfg_scale=guidance, width=side, height=side)
second = base64.b64decode(made.json["images"][0])
assert second == first

replicate = Client(api_token=key, base_url=f"{url}/compat/replicate")
given = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "guidance_scale": guidance}
(output,) = replicate.run("farm/starter", input={**given, "width": side, "height": side, "scheduler": "DDIM"})
third = FileOutput(output, replicate).read()
assert third == first
print(len(first))
