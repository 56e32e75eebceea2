"""webuiapi, the client of A1111's web UI, against a farm."""

import base64
import io
import os
import threading
import time
from urllib.parse import urlsplit

import requests
import webuiapi
from checks import refused
from PIL import Image

where = urlsplit(os.environ["FARM_URL"])
api = webuiapi.WebUIApi(
    where.hostname, where.port, sampler="Euler a", steps=4, username="any", password=os.environ["FARM_KEY"]
)

assert api.util_get_model_names() == ["starter"]
assert "Euler a" in api.util_get_sampler_names()
assert api.util_get_scheduler_names() == ["automatic", "beta", "exponential", "karras", "sgm_uniform"]
assert api.util_get_current_model() == "starter"
api.util_set_model("starter")
api.util_wait_for_ready()
assert api.get_upscalers() == api.get_loras() == []
assert api.refresh_checkpoints() is None

made = api.txt2img(
    prompt="a red ball", negative_prompt="blur", width=64, height=128, batch_size=2, seed=11, cfg_scale=3
)
assert [image.size for image in made.images] == [(64, 128)] * 2
info = made.info
assert (info["seed"], info["all_seeds"], info["steps"]) == (11, [11, 12], 4)
assert (info["sampler_name"], info["sd_model_name"]) == ("Euler a", "starter")
assert info["infotexts"][1].endswith("Steps: 4, Sampler: Euler a, CFG scale: 3, Seed: 12, Size: 64x128, Model: starter")
assert made.parameters["prompt"] == "a red ball"
drawn = api.txt2img(prompt="a red ball", width=64, height=64, override_settings={"sd_model_checkpoint": "starter"})
assert drawn.info["seed"] >= 0

image = Image.new("RGB", (64, 64), "red")
mask = Image.new("L", (64, 64), 0)
mask.paste(255, (0, 0, 32, 64))
varied = api.img2img(images=[image], prompt="a blue ball", width=64, height=64, denoising_strength=0.5, seed=1)
assert varied.info["denoising_strength"] == 0.5
painted = api.img2img(images=[image], mask_image=mask, prompt="a blue ball", width=64, height=64, seed=2)
inverse = api.img2img(
    images=[image], mask_image=mask, inpainting_mask_invert=1, prompt="a blue ball", width=64, height=64, seed=3
)
assert painted.image.size == inverse.image.size == (64, 64)

# progress and interrupt
ended = []


def slow():
    try:
        api.txt2img(prompt="slow", width=64, height=64)
    except RuntimeError as error:
        ended.append(error.args)


thread = threading.Thread(target=slow)
thread.start()
deadline = time.monotonic() + 20
while not api.get_progress()["state"]["sampling_step"]:
    assert time.monotonic() < deadline
    time.sleep(0.05)
progress = api.get_progress()
assert (progress["state"]["job_count"], progress["progress"]) == (1, 0.5)
assert progress["eta_relative"] > 0
assert api.interrupt() == {}
thread.join(20)
assert ended, "the interrupted image did not end"
assert ended[0][0] == 422
assert "canceled" in ended[0][1]
assert api.get_progress()["state"]["job_count"] == 0

# refusals
for wrong, field in (
    ({"sampler_name": "DPM fast"}, "sampler_name"),
    ({"enable_hr": True}, "enable_hr"),
    ({"steps": 0}, "steps"),
    ({"width": 1024}, "width"),
    ({"styles": ["mine"]}, "styles"),
    ({"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae"),
    ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}}, "alwayson_scripts"),
):
    with refused(RuntimeError) as caught:
        api.txt2img(**{"prompt": "x", "width": 64, "height": 64} | wrong)
    assert caught.error.args[0] == 422, caught.error
    assert f'"detail":"{field}: ' in caught.error.args[1], caught.error
with refused(RuntimeError) as caught:
    api.txt2img(prompt="please fail", width=64, height=64)
assert "render_failed" in caught.error.args[1]
assert "detail" in api.set_options({"sd_model_checkpoint": "another"})

bare = requests.post(f"{api.baseurl}/txt2img", json={"prompt": "x"}, timeout=20)
assert bare.status_code == 401
assert bare.headers["www-authenticate"].startswith("Basic")
assert "API key" in bare.json()["detail"]
bad = requests.post(f"{api.baseurl}/img2img", json={"init_images": ["%"]}, auth=api.session.auth, timeout=20)
assert (bad.status_code, bad.json()["error"]) == (422, "invalid_value")
absent = requests.post(f"{api.baseurl}/interrogate", json={}, auth=api.session.auth, timeout=20)
assert (absent.status_code, "A1111" in absent.json()["detail"]) == (404, True)
plain = requests.post(f"{api.baseurl}/txt2img", data=b"[1", auth=api.session.auth, timeout=20)
assert plain.status_code == 422
# the least that a client may send
least = requests.post(f"{api.baseurl}/txt2img", json={"prompt": "a red ball"}, auth=api.session.auth, timeout=20).json()
assert Image.open(io.BytesIO(base64.b64decode(least["images"][0]))).size == (128, 128)
