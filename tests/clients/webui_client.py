"""A client of AUTOMATIC1111's web UI: python webui_client.py BASE_URL (in a folder with picture.png)."""

import sys
from urllib.parse import urlsplit

import webuiapi
from PIL import Image, ImageChops

where = urlsplit(sys.argv[1])
api = webuiapi.WebUIApi(host=where.hostname, port=where.port)

made = api.txt2img(prompt="a (red:1.2) apple", negative_prompt="leaf", seed=3, steps=4, width=128, height=96)
assert made.image.size == (128, 96) and made.info["all_seeds"] == [3]
before = Image.open("picture.png").convert("RGB")
mask = Image.new("L", before.size)
mask.paste(255, (20, 20, 40, 40))
after = api.img2img(images=[before], mask_image=mask, prompt="a hat", steps=4, mask_blur=0, inpainting_fill=1).image
changed = ImageChops.difference(after.convert("RGB"), before).getbbox()
assert changed and changed[0] >= 20 and changed[1] >= 20 and changed[2] <= 40 and changed[3] <= 40
assert api.png_info(made.image).info.startswith("a red apple")
assert {"Euler a", "DDIM"} <= {alias for sampler in api.get_samplers() for alias in sampler["aliases"]}
assert api.get_progress()["progress"] == 0
assert "stickers-gan" in api.util_get_model_names()
api.util_set_model("stickers-gan")
assert api.util_get_current_model() == "stickers-gan"
assert api.txt2img(prompt="a hat").info["sd_model_name"] == "stickers-gan"
