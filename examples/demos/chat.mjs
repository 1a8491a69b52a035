// openai-node: a chat, its answer word by word as it is made. npm install --no-save openai; node examples/demos/chat.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.LLAMAXING_BASE_URL ?? "http://localhost:8000/v1",
  apiKey: process.env.LLAMAXING_API_KEY ?? "any",
});
const stream = await client.chat.completions.create({
  model: process.env.LLAMAXING_MODEL ?? "gpt-6-luna",
  messages: [{ role: "user", content: "What is a gateway? One sentence." }],
  max_completion_tokens: 60,
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
}
console.log();
