"""The current openai-python: python openai_current.py BASE_URL (in a folder with picture.png and mask.png)."""

import asyncio
import base64
import sys
import urllib.request

import openai

SMALL = "256x256"
client = openai.OpenAI(api_key="sk-test", base_url=sys.argv[1])


def is_picture(text: str | None, start: bytes = b"\x89PNG") -> bool:
    """Whether base64 holds a picture of that kind."""
    return text is not None and base64.b64decode(text).startswith(start)


def generations() -> None:
    """Pictures from words, in every shape of answer."""
    made = client.images.generate(model="gpt-image-2", prompt="a red fox", n=2, size=SMALL, output_format="webp")
    assert len(made.data) == 2 and all(is_picture(item.b64_json, b"RIFF") for item in made.data)
    assert made.usage is not None and made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.usage.input_tokens_details.text_tokens > 0 and made._request_id.startswith("req_")
    assert (made.size, made.output_format) == (SMALL, "webp") and made.background in ("transparent", "opaque")
    assert made.quality in ("low", "medium", "high") and made.data[0].url is None
    assert made.model.endswith("stickers-diffusion") and made.adjustments[0]["field"] == "model"

    old = client.images.generate(model="dall-e-3", prompt="a red fox", style="vivid", quality="hd", size=SMALL)
    assert old.data[0].b64_json is None
    with urllib.request.urlopen(old.data[0].url) as answer:
        assert answer.read().startswith(b"\x89PNG")

    ours = {"imagewright": {"seed": 7}, "guidance_scale": 3.0}
    same = [
        client.images.generate(prompt="a red fox", response_format="b64_json", size=SMALL, extra_body=ours)
        for _ in range(2)
    ]
    assert same[0].imagewright["seeds"] == [7]
    raw = client.images.with_raw_response.generate(model="gpt-image-2", prompt="a fox", size=SMALL)
    assert raw.headers["x-imagewright-model"] and raw.parse().data


def streams() -> None:
    """Previews, then the picture."""
    for count in (0, 2):
        stream = client.images.generate(
            model="gpt-image-2", prompt="a red fox", size=SMALL, stream=True, partial_images=count or None
        )
        events = list(stream)
        partial = [event for event in events if event.type == "image_generation.partial_image"]
        assert [event.partial_image_index for event in partial] == list(range(count))
        assert events[-1].type == "image_generation.completed" and len(events) == count + 1
        assert all(is_picture(event.b64_json) for event in events) and events[-1].usage.total_tokens > 0
    with open("picture.png", "rb") as image:
        events = list(client.images.edit(model="gpt-image-2", image=image, prompt="make it blue", stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]


def edits() -> None:
    """With a mask, with several pictures, without either; and variations."""
    with open("picture.png", "rb") as image, open("mask.png", "rb") as mask:
        masked = client.images.edit(model="gpt-image-2", image=image, mask=mask, prompt="a blue hat")
    with open("picture.png", "rb") as one, open("picture.png", "rb") as other:
        blended = client.images.edit(model="gpt-image-2", image=[one, other], prompt="two cats")
    with open("picture.png", "rb") as image:
        told = client.images.edit(image=image, prompt="make it green", model="gpt-image-2", input_fidelity="high")
    assert all(is_picture(made.data[0].b64_json) for made in (masked, blended, told))
    with open("picture.png", "rb") as image:
        varied = client.images.create_variation(image=image, n=2, size=SMALL)
    assert all(item.url for item in varied.data)


def things() -> None:
    """Models and files."""
    ids = [model.id for model in client.models.list()]
    assert "stickers-diffusion" in ids and client.models.retrieve("embedded/stickers-gan").owned_by == "embedded"
    with open("picture.png", "rb") as image:
        file = client.files.create(file=image, purpose="vision")
    assert file.id in [one.id for one in client.files.list()]
    assert client.files.content(file.id).read().startswith(b"\x89PNG")
    assert client.files.retrieve(file.id).bytes == file.bytes and client.files.delete(file.id).deleted


def errors() -> None:
    """Every error is of the class that the SDK has for it, with its code, parameter and request."""
    for wrong, kind, code, param in (
        ({"size": "big"}, openai.BadRequestError, "invalid_value", "size"),
        ({"n": 1000}, openai.BadRequestError, "invalid_value", "n"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "unknown_parameter", "nonsense"),
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", "model"),
        ({"output_format": "gif"}, openai.BadRequestError, "invalid_value", "output_format"),
    ):
        try:
            client.images.generate(**{"prompt": "a fox", "model": "gpt-image-2", **wrong})
        except kind as error:
            assert (error.code, error.param, error.type) == (code, param, "invalid_request_error"), error
            assert error.request_id.startswith("req_") and error.body["message"]
        else:
            raise AssertionError(f"{wrong} was not refused")


async def asynchronously() -> None:
    """Several at once."""
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=sys.argv[1]) as other:
        calls = [other.images.generate(model="gpt-image-2", prompt=f"fox {i}", size=SMALL) for i in range(4)]
        made = await asyncio.gather(*calls)
    assert len({item.data[0].b64_json for item in made}) == 4


generations()
streams()
edits()
things()
errors()
asyncio.run(asynchronously())
