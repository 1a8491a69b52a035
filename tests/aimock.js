// aimock for tests/services.py: node aimock.js AIMOCK/dist/index.cjs KEY FIXTURES.json
// It prints its URL, and ends when its standard input does. `GET /calls` tells, once, what it was
// asked and what it answered, to the byte; its own journal has a translation of some.
"use strict";
const { readFileSync } = require("node:fs");
const [, , aimock, key, fixtures] = process.argv;
const { LLMock } = require(aimock);

process.stdin.on("end", () => process.exit()).resume();

const calls = [];
const mock = new LLMock({ auth: { apiKeys: [key] }, chunkSize: 6, strict: true });
mock.addFixturesFromJSON(readFileSync(fixtures, "utf8"));
mock.mount("/calls", {
  async handleRequest(_, response) {
    response.end(JSON.stringify(calls.splice(0)));
    return true;
  },
});

function keep(request, response) {
  if (request.method !== "POST") return;
  const call = { path: request.url, asked: "", answered: "" };
  calls.push(call);
  request.on("data", (part) => (call.asked += part));
  for (const name of ["write", "end"]) {
    const send = response[name];
    response[name] = function (part, ...more) {
      if (part) call.answered += part;
      return send.call(this, part, ...more);
    };
  }
}

mock.start().then((url) => {
  mock.serverInstance.server.on("request", keep);
  console.log(url);
});
