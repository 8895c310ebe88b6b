// openai-node and the Vercel AI SDK: node node_clients.mjs BASE_URL (in a folder with picture.png).
import assert from "node:assert/strict";
import fs from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";
import OpenAI, { NotFoundError, toFile } from "openai";

const baseURL = process.argv[2];
const apiKey = "sk-test";
const size = "256x256";
const picture = fs.readFileSync("picture.png");
const client = new OpenAI({ apiKey, baseURL });

const made = await client.images.generate({ model: "gpt-image-2", prompt: "a red fox", n: 2, size });
assert.equal(made.data.length, 2);
assert.ok(made.data[0].b64_json.startsWith("iVBOR") && made._request_id.startsWith("req_"));

const types = [];
const stream = await client.images.generate({ model: "gpt-image-2", prompt: "a fox", size, stream: true, partial_images: 1 });
for await (const event of stream) types.push(event.type);
assert.deepEqual(types, ["image_generation.partial_image", "image_generation.completed"]);

const edit = { model: "gpt-image-2", prompt: "make it blue" };
const file = async (name) => toFile(picture, name, { type: "image/png" });
for (const image of [fs.createReadStream("picture.png"), [await file("a.png"), await file("b.png")]]) {
  assert.ok((await client.images.edit({ ...edit, image })).data[0].b64_json);
}
const varied = await client.images.createVariation({ image: fs.createReadStream("picture.png"), n: 1, size });
assert.ok((await (await fetch(varied.data[0].url)).arrayBuffer()).byteLength > 100);
assert.ok((await client.models.list()).data.some((model) => model.id === "stickers-diffusion"));
const kept = await client.files.create({ file: fs.createReadStream("picture.png"), purpose: "vision" });
assert.equal((await client.files.delete(kept.id)).deleted, true);
await assert.rejects(client.images.generate({ model: "no-such-model", prompt: "a" }), (error) => {
  return error instanceof NotFoundError && error.code === "model_not_found" && error.param === "model";
});

// The AI SDK wants base64 in every item.
const openai = createOpenAI({ apiKey, baseURL });
const compatible = createOpenAICompatible({ name: "imagewright", apiKey, baseURL });
const prompt = { text: "make it blue", images: [picture] };
for (const [count, call] of [
  [2, { model: openai.image("gpt-image-2"), prompt: "a fox", n: 2, size }],
  [3, { model: openai.image("stickers-gan"), prompt: "a fox", n: 3 }],
  [1, { model: openai.image("dall-e-3"), prompt: "a fox", size }],
  [1, { model: openai.image("gpt-image-2"), prompt }],
  [2, { model: compatible.imageModel("stickers-diffusion"), prompt: "a fox", n: 2, size }],
  [1, { model: compatible.imageModel("stickers-diffusion"), prompt }],
]) {
  const { images } = await generateImage(call);
  assert.equal(images.length, count);
  for (const image of images) assert.equal(image.mediaType, "image/png");
}
