"""LangChain's two ways to pictures: python langchain_clients.py BASE_URL."""

import sys
import urllib.request
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402

where = {"base_url": sys.argv[1], "api_key": "sk-test"}

for count in (1, 2):
    urls = DallEAPIWrapper(**where, model="dall-e-3", n=count, size="256x256").run("a red cube").split("\n")
    assert len(urls) == count
    for url in urls:
        with urllib.request.urlopen(url) as answer:
            assert answer.read().startswith(b"\x89PNG")

model = ChatOpenAI(**where, model="gpt-5", output_version="responses/v1").bind_tools([{"type": "image_generation"}])
blocks = model.invoke("draw a red cat").content
[drawn] = [block for block in blocks if block["type"] == "image_generation_call"]
assert drawn["result"].startswith("iVBOR")

first = model.invoke("draw a cat, 256x256")
for way in ({}, {"use_previous_response_id": True}):  # all that was said again, or the id of the last response
    again = ChatOpenAI(**where, model="gpt-5", output_version="responses/v1", **way).bind_tools(
        [{"type": "image_generation"}]
    )
    second = again.invoke([("user", "draw a cat, 256x256"), first, ("user", "make it blue")])
    assert any("make the cat blue" in block.get("text", "") for block in second.content), second
