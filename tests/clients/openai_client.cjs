// openai-node: each of its clients.
"use strict";
const { AzureOpenAI, OpenAI } = require("openai");
const seen = require("./seen.cjs");

const model = seen.chat_model;
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const chatTools = [{ type: "function", function: { name: "weather", parameters } }];
const tools = [{ type: "function", name: "weather", parameters, strict: false }];
const user = (content) => [{ role: "user", content }];

async function chatPlain({ chat }) {
  const it = await chat.completions.create({ model, messages: user(seen.question) });
  const usage = it.usage;
  return seen.plain(it.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens);
}

async function chatStreamed({ chat }) {
  const counted = { stream: true, stream_options: { include_usage: true } };
  const messages = user(seen.question);
  const stream = await chat.completions.create({ model, messages, ...counted });
  const pieces = [];
  let usage;
  for await (const chunk of stream) {
    pieces.push(chunk.choices[0]?.delta.content);
    usage = chunk.usage ?? usage;
  }
  return seen.streamed(pieces, usage.prompt_tokens, usage.completion_tokens);
}

async function chatToolsCalled({ chat }) {
  const messages = user(seen.weather);
  const first = await chat.completions.create({ model, messages, tools: chatTools });
  const [call] = first.choices[0].message.tool_calls;
  messages.push(first.choices[0].message);
  messages.push({ role: "tool", tool_call_id: call.id, content: "12" });
  const second = await chat.completions.create({ model, messages, tools: chatTools });
  const text = second.choices[0].message.content;
  return { arguments: JSON.parse(call.function.arguments), text };
}

async function embeddings(client) {
  const it = await client.embeddings.create({ model: seen.embedding_model, input: seen.texts });
  return it.data.map((one) => one.embedding);
}

async function responsesPlain({ responses }) {
  const it = await responses.create({ model, input: seen.question });
  return seen.plain(it.output_text, it.usage.input_tokens, it.usage.output_tokens);
}

async function responsesStreamed({ responses }) {
  const stream = await responses.create({ model, input: seen.question, stream: true });
  const pieces = [];
  let usage;
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") pieces.push(event.delta);
    if (event.type === "response.completed") usage = event.response.usage;
  }
  return seen.streamed(pieces, usage.input_tokens, usage.output_tokens);
}

async function responsesTools({ responses }) {
  const input = user(seen.weather);
  const first = await responses.create({ model, input, tools });
  const [call] = first.output;
  input.push(call, { type: "function_call_output", call_id: call.call_id, output: "12" });
  const second = await responses.create({ model, input, tools });
  return { arguments: JSON.parse(call.arguments), text: second.output_text };
}

async function responsesTurns(client, other) {
  const first = await client.responses.create({ model, input: seen.question });
  const after = { previous_response_id: first.id };
  const second = await other.responses.create({ model, input: seen.next, ...after });
  return [first.output_text, second.output_text];
}

async function show(classes, at) {
  await seen.tell(classes, {
    chat_plain: (gateway) => chatPlain(at(gateway)),
    chat_streamed: (gateway) => chatStreamed(at(gateway)),
    chat_tools: (gateway) => chatToolsCalled(at(gateway)),
    embeddings_texts: (gateway) => embeddings(at(gateway)),
    responses_plain: (gateway) => responsesPlain(at(gateway)),
    responses_streamed: (gateway) => responsesStreamed(at(gateway)),
    responses_tools: (gateway) => responsesTools(at(gateway)),
    responses_turns: (gateway, other) => responsesTurns(at(gateway), at(other)),
  });
}

const apiKey = seen.key;
const openai = seen.kept((gateway) => new OpenAI({ baseURL: `${gateway}/v1`, apiKey }));
const azure = seen.kept(
  (endpoint) => new AzureOpenAI({ endpoint, apiKey, apiVersion: seen.apiVersion }),
);

show("OpenAI", openai).then(() => show("AzureOpenAI", azure));
