// The Vercel AI SDK: the OpenAI and Azure providers, by responses (their default) and by chat.
"use strict";
const { createAzure } = require("@ai-sdk/azure");
const { createOpenAI } = require("@ai-sdk/openai");
const { embedMany, generateText, isStepCount, stepCountIs, streamText, tool } = require("ai");
const { z } = require("zod");
const seen = require("./seen.cjs");

const counted = (usage) => [usage.inputTokens, usage.outputTokens];
const enough = (isStepCount ?? stepCountIs)(3);

async function plain(model) {
  const it = await generateText({ model, prompt: seen.question });
  return seen.plain(it.text, ...counted(it.usage));
}

async function streamed(model) {
  const it = streamText({ model, prompt: seen.question });
  const pieces = [];
  for await (const piece of it.textStream) pieces.push(piece);
  return seen.streamed(pieces, ...counted(await it.usage));
}

async function tools(model) {
  const given = [];
  const weather = tool({
    inputSchema: z.object({ city: z.string() }),
    execute: async (it) => (given.push(it), "12"),
  });
  const asked = { model, prompt: seen.weather, tools: { weather }, stopWhen: enough };
  const it = await generateText(asked);
  return { arguments: given[0], text: it.text };
}

// It refers to its own answer as an item that upstream keeps.
async function turns(model, other) {
  const messages = [{ role: "user", content: seen.question }];
  const first = await generateText({ model, messages });
  messages.push(...first.response.messages, { role: "user", content: seen.next });
  const second = await generateText({ model: other, messages });
  return [first.text, second.text];
}

async function embeddings(model) {
  return (await embedMany({ model, values: seen.texts })).embeddings;
}

async function show(name, at) {
  const model = seen.chat_model;
  await seen.tell(`${name}()(model)`, {
    embeddings_texts: (gateway) => embeddings(at(gateway).embedding(seen.embedding_model)),
    responses_plain: (gateway) => plain(at(gateway)(model)),
    responses_streamed: (gateway) => streamed(at(gateway)(model)),
    responses_tools: (gateway) => tools(at(gateway)(model)),
    responses_turns: (gateway, other) => turns(at(gateway)(model), at(other)(model)),
  });
  await seen.tell(`${name}().chat(model)`, {
    chat_plain: (gateway) => plain(at(gateway).chat(model)),
    chat_streamed: (gateway) => streamed(at(gateway).chat(model)),
    chat_tools: (gateway) => tools(at(gateway).chat(model)),
  });
}

const apiKey = seen.key;
const openai = seen.kept((gateway) => createOpenAI({ baseURL: `${gateway}/v1`, apiKey }));
const azure = seen.kept((gateway) => createAzure({ baseURL: `${gateway}/openai`, apiKey }));

show("createOpenAI", openai).then(() => show("createAzure", azure));
