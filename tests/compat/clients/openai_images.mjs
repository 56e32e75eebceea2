// The official client of OpenAI for Node, against a farm.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const { default: OpenAI, toFile } = require("openai");
const client = new OpenAI({ baseURL: process.env.FARM_URL + "/compat/openai/v1", apiKey: process.env.FARM_KEY });

const made = await client.images.generate({ prompt: "a red ball", n: 2, size: "64x64", seed: 7 });
assert.equal(made.data.length, 2);
const picture = Buffer.from(made.data[0].b64_json, "base64");
assert.deepEqual([...picture.subarray(1, 4)], [...Buffer.from("PNG")]);

const varied = await client.images.edit({ image: await toFile(picture, "in.png"), prompt: "a blue ball" });
assert.equal(varied.data.length, 1);

await assert.rejects(
  client.images.generate({ prompt: "x", size: "big" }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "size",
);

const line = { custom_id: "a", method: "POST", url: "/v1/images/generations", body: { prompt: "x", size: "64x64" } };
const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "n.jsonl"), purpose: "batch" });
let batch = await client.batches.create({
  input_file_id: file.id, endpoint: "/v1/images/generations", completion_window: "24h",
});
const deadline = Date.now() + 30_000;
while (batch.status !== "completed") {
  assert.ok(Date.now() < deadline, batch.status);
  await new Promise((resolve) => setTimeout(resolve, 50));
  batch = await client.batches.retrieve(batch.id);
}
const answers = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
assert.equal(answers[0].custom_id, "a");
assert.match(answers[0].response.body.data[0].url, /^http/);
console.log("done");
