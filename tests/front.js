// Node's own HTTP server in front of another, for tests/fronts.py:
// node front.js BEHIND REQUESTS IDLE FOLDER - prints its two ports, of http and of https.
// It ends a connection after REQUESTS, after IDLE milliseconds without one, and where the path says
// /closing/; refuses bodies of more than a megabyte before it reads them; and writes of each request
// the connection, how many there have been on it, and the path.
"use strict";
const fs = require("node:fs");
const http = require("node:http");
const https = require("node:https");
const [, , behind, requests, idle, folder] = process.argv;

let connections = 0;
const log = fs.createWriteStream(`${folder}/access.log`);

function handle(req, res) {
  const socket = req.socket;
  socket.number ??= ++connections;
  socket.requests = (socket.requests ?? 0) + 1;
  res.on("close", () => log.write(`${socket.number} ${socket.requests} ${req.url}\n`));
  if (req.url.includes("/closing/")) res.shouldKeepAlive = false;
  if (Number(req.headers["content-length"]) > 2 ** 20) {
    const body = JSON.stringify({ error: { message: "too large" } });
    res.writeHead(413, { "content-type": "application/json", "content-length": body.length });
    res.end(body);
    return;
  }
  const { connection, ...headers } = req.headers;
  const options = { path: req.url, method: req.method, headers, agent: false };
  const asking = http.request(behind, options, (reply) => {
    const { connection, ...told } = reply.headers;
    res.writeHead(reply.statusCode, told);
    reply.pipe(res);
  });
  req.pipe(asking);
}

const options = {
  cert: fs.readFileSync(`${folder}/cert.pem`),
  key: fs.readFileSync(`${folder}/key.pem`),
};
const servers = [http.createServer(handle), https.createServer(options, handle)];
for (const server of servers) {
  server.maxRequestsPerSocket = Number(requests);
  server.keepAliveTimeout = Number(idle);
  server.keepAliveTimeoutBuffer = 0;
}
servers[0].listen(0, "127.0.0.1", () =>
  servers[1].listen(0, "127.0.0.1", () =>
    console.log(servers.map((it) => it.address().port).join(" "))));
process.stdin.on("close", () => process.exit()).resume();
