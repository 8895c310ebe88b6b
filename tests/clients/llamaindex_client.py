"""LlamaIndex's image tool: python llamaindex_client.py BASE_URL (OPENAI_BASE_URL says the same)."""

import sys
import urllib.request
from pathlib import Path

from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec

tool = OpenAIImageGenerationToolSpec(api_key="sk-test", cache_dir="kept")
url = tool.image_generation("a red cube", size="1024x1024")
assert url.startswith(sys.argv[1])
with urllib.request.urlopen(url) as answer:
    assert answer.read().startswith(b"\x89PNG")
[kept] = tool.image_generation("a red cube", model="dall-e-2", size="256x256", download=True)
assert Path(kept).read_bytes().startswith(b"\x89PNG")
