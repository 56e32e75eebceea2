"""Render one image and save it: python one_job.py "a red ball on a blue background" ball.png"""

import sys

from farm.client import Farm

prompt, file = sys.argv[1], sys.argv[2]

with Farm() as farm:  # FARM_URL and FARM_API_KEY
    rendered = farm.run(prompt, seed=7, width=128, height=128)

image = rendered.images[0]
image.save(file)
print(f"{file}: seed {image.seed}, {image.width}x{image.height}, {image.media_type}")
