// What npm's clients make of chat streams that break off, for tests/e2e/test_cut_streams.py.
// node cut_streams.cjs BASE_URL TIMES - NODE_PATH says where the clients are.
// Prints a line of JSON for each stream: the client, the texts that it saw, and the error.
"use strict";
const { createOpenAI } = require("@ai-sdk/openai");
const { streamText } = require("ai");
const { OpenAI } = require("openai");

const [, , baseURL, times] = process.argv;
const prompt = "Hello";
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, logLevel: "off" });
const model = createOpenAI({ baseURL, apiKey: "any" }).chat("m");

async function openai(texts) {
  const messages = [{ role: "user", content: prompt }];
  const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
  for await (const chunk of stream) texts.push(chunk.choices[0].delta.content);
}

async function vercel(texts) {
  let failure;
  const onError = ({ error }) => (failure ??= error);
  for await (const text of streamText({ model, prompt, maxRetries: 0, onError }).textStream)
    texts.push(text);
  if (failure) throw failure;
}

async function main() {
  for (const ask of [openai, vercel])
    for (let index = 0; index < times; index++) {
      const texts = [];
      const error = await ask(texts).catch((it) => it);
      console.log(JSON.stringify([ask.name, texts.join(""), error?.constructor.name, error?.code]));
    }
}

main();
