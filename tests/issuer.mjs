// An OpenID Connect issuer for tests/services.py: node issuer.mjs OAUTH2-MOCK-SERVER/dist/index.mjs PORT
// It ends when its standard input does. A line there says what it is to do.
import { subscribe } from "node:diagnostics_channel";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { OAuth2Server } = await import(pathToFileURL(process.argv[2]));
let port = Number(process.argv[3]);

async function begin() {
  const server = new OAuth2Server();
  await server.issuer.keys.generate("RS256");
  // Who asked, as Entra ID tells it of an application.
  server.service.on("beforeTokenSigning", (token, request) => {
    token.payload.oid = request.body.client_id;
    if (request.body.roles) token.payload.roles = request.body.roles.split(",");
  });
  await server.start(port, "127.0.0.1");
  port = server.address().port;
  server.issuer.url = `http://127.0.0.1:${port}`;
  console.log(server.issuer.url);
  return server;
}

let fetches = 0;
subscribe("http.server.request.start", ({ request }) => {
  if (request.url === "/jwks") fetches += 1;
});
const commands = {
  async rotate() {
    await server.stop();
    server = await begin();
  },
  fetches: () => console.log(fetches),
};
let server = await begin();
process.stdin.on("end", () => process.exit());
createInterface({ input: process.stdin }).on("line", (line) => commands[line]());
