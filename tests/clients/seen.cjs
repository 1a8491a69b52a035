// What a client of npm's sees, told as seen.py tells it. NODE_PATH says where the clients are.
"use strict";

const talk = JSON.parse(process.argv[2]);

// Runs each case, at either gateway; the other one is its second argument.
async function tell(classes, cases) {
  const [one, other] = talk.gateways;
  for (const gateways of [[one, other], [other, one]]) {
    for (const [name, test] of Object.entries(cases)) {
      const seen = await test(...gateways).catch((error) => error.stack + JSON.stringify(error));
      console.log(JSON.stringify({ classes, case: name, gateway: gateways[0], seen }));
    }
  }
}

const plain = (text, input, output) => ({ text, tokens: [input, output] });

// A stream's texts in the order that they came, and its usage.
const streamed = (pieces, input, output) => ({
  ...plain(pieces.join(""), input, output),
  in_pieces: pieces.filter((it) => it).length > 2,
});

// A client for a gateway, made once.
function kept(make) {
  const made = new Map();
  return (gateway) => made.get(gateway) ?? made.set(gateway, make(gateway)).get(gateway);
}

// The Azure flavours' api-version: the gateway sends an upstream its own.
const apiVersion = "2025-04-01-preview";

module.exports = { ...talk, apiVersion, tell, plain, streamed, kept };
