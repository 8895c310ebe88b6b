"""LiteLLM's client: python litellm_client.py BASE_URL (in a folder with picture.png)."""

import sys

import litellm

where = {"api_base": sys.argv[1], "api_key": "sk-test"}
litellm.suppress_debug_info = True

made = litellm.image_generation(model="openai/gpt-image-2", prompt="a fox", size="256x256", n=2, **where)
assert [item.b64_json[:5] for item in made.data] == ["iVBOR", "iVBOR"] and made.usage.total_tokens > 0
by_url = litellm.image_generation(model="openai/dall-e-3", prompt="a fox", size="256x256", **where)
assert by_url.data[0].url.startswith(sys.argv[1])
with open("picture.png", "rb") as image:
    edited = litellm.image_edit(model="openai/gpt-image-2", image=[image], prompt="make it blue", **where)
assert edited.data[0].b64_json.startswith("iVBOR")
with open("picture.png", "rb") as image:
    varied = litellm.image_variation(model="openai/dall-e-2", image=image, **where)
assert varied.data[0].url
try:
    litellm.image_generation(model="openai/no-such-model", prompt="a fox", **where)
except litellm.exceptions.NotFoundError as error:
    assert "no-such-model" in str(error)
else:
    raise AssertionError("an unknown model was not refused")
