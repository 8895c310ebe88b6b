"""openai-python 0.28.1, as programs of 2022 and 2023 use it: python openai_legacy.py BASE_URL (in a folder with
picture.png and mask.png). OPENAI_API_BASE and OPENAI_API_KEY say where to and with which key."""

import sys
import urllib.request

import openai

# As in every article on DALL-E; not a line differs.
response = openai.Image.create(
    prompt="a white siamese cat",
    n=1,
    size="1024x1024",
)
image_url = response["data"][0]["url"]


def fetched(url: str) -> bytes:
    """A picture by its URL, without a key."""
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["content-type"] == "image/png"
        return answer.read()


def main() -> None:
    """Everything that this client can ask for."""
    assert image_url.startswith(sys.argv[1]) and fetched(image_url).startswith(b"\x89PNG")
    several = openai.Image.create(prompt="a red cube", n=3, size="256x256")
    assert isinstance(several.created, int) and len({item.url for item in several.data}) == 3
    in_base64 = openai.Image.create(prompt="a red cube", response_format="b64_json", size="256x256")
    assert in_base64.data[0].b64_json.startswith("iVBOR")

    with open("picture.png", "rb") as image, open("mask.png", "rb") as mask:
        edit = openai.Image.create_edit(image=image, mask=mask, prompt="a blue hat", n=1, size="256x256")
    with open("picture.png", "rb") as image:
        variations = openai.Image.create_variation(image=image, n=2, size="256x256")
    for item in (*edit.data, *variations["data"]):
        assert fetched(item["url"]).startswith(b"\x89PNG")

    ids = [model.id for model in openai.Model.list().data]
    assert openai.Model.retrieve(ids[0]).id == ids[0]

    for wrong, kind, status in (
        ({"prompt": "a cat", "n": 0}, openai.error.InvalidRequestError, 400),
        ({"prompt": "a cat", "model": "no-such-model"}, openai.error.InvalidRequestError, 404),
        ({"prompt": ""}, openai.error.InvalidRequestError, 400),
    ):
        try:
            openai.Image.create(**wrong)
        except kind as error:
            assert error.http_status == status and error.code and error.param, error
            assert error.headers["x-request-id"].startswith("req_")
        else:
            raise AssertionError(f"{wrong} was not refused")


main()
