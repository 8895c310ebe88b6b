"""Conversations through the current openai-python: python openai_responses.py BASE_URL."""

import base64
import sys
import time

import openai

client = openai.OpenAI(api_key="sk-test", base_url=sys.argv[1])
TOOLS = [{"type": "image_generation"}]


def say(words, **more):
    """A turn."""
    return client.responses.create(model="gpt-5", input=words, tools=TOOLS, **more)


def call(response):
    """The picture of a response."""
    return next(item for item in response.output if item.type == "image_generation_call")


cat = say("draw a cat, 64x64, seed 3")
assert base64.b64decode(call(cat).result).startswith(b"\x89PNG") and cat.output_text and cat.usage.total_tokens > 0
blue = say("make it blue", previous_response_id=cat.id)
back = say("undo", previous_response_id=blue.id)
assert call(back).result == call(cat).result != call(blue).result

named = {"type": "image_generation_call", "id": call(cat).id}
assert call(say([{"role": "user", "content": [{"type": "input_text", "text": "put it on a red background"}]}, named]))
url = f"data:image/png;base64,{call(cat).result}"
file = client.files.create(file=("cat.png", base64.b64decode(call(cat).result), "image/png"), purpose="vision")
for picture in ({"image_url": url}, {"file_id": file.id}):
    content = [{"type": "input_text", "text": "make it bigger"}, {"type": "input_image", **picture}]
    assert call(say([{"role": "user", "content": content}])).size == "128x128"

previews = [{"type": "image_generation", "partial_images": 2}]
more = {"tools": previews, "previous_response_id": blue.id, "stream": True}
told = list(client.responses.create(model="gpt-5", input="add a tree on the left", **more))
kinds = [event.type.removeprefix("response.").removeprefix("image_generation_call.") for event in told]
assert kinds[:5] == ["created", "in_progress", "output_item.added", "in_progress", "generating"]
assert kinds.count("partial_image") == 2 and kinds[-1] == "completed" and call(told[-1].response).result
with client.responses.stream(model="gpt-5", input="draw a dog, 64x64", tools=TOOLS) as stream:
    for _ in stream:
        pass
    assert call(stream.get_final_response()).result

later = say("draw a fox, 64x64", background=True)
while later.status in ("queued", "in_progress"):
    time.sleep(0.05)
    later = client.responses.retrieve(later.id)
assert later.status == "completed" and call(later).result
assert client.responses.input_items.list(later.id).data[0].content[0].text == "draw a fox, 64x64"
assert client.responses.cancel(later.id).status == "completed"
client.responses.delete(later.id)
try:
    client.responses.retrieve(later.id)
    raise AssertionError("it is still there")
except openai.NotFoundError as error:
    assert error.code == "not_found" and error.request_id

kept = say("draw a fox, 64x64", store=False)
history = [{"role": "user", "content": "draw a fox"}, *(item.model_dump() for item in kept.output)]
assert "fox green" in say([*history, {"role": "user", "content": "make it green"}], store=False).output_text
try:
    say("make it blue", previous_response_id=kept.id)
    raise AssertionError("it was not to be kept")
except openai.BadRequestError as error:
    assert error.code == "previous_response_not_found" and error.param == "previous_response_id"
print("ok")
