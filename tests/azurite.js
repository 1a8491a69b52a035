// Azurite for tests/services.py: node azurite.js AZURITE/dist/src/azurite.js [its options].
// It ends when its standard input does. A line there is a power cut that loses nothing acknowledged.
"use strict";
const { writeFileSync } = require("node:fs");
const { createRequire } = require("node:module");

process.argv.splice(1, 1);
const azurite = process.argv[1];

// Left alone, it saves its tables every five seconds, and a kill would lose what came since.
const tables = new Set();
createRequire(azurite)("lokijs").prototype.autosaveEnable = function () {
  tables.add(this);
};

process.stdin.on("end", () => process.exit());
process.stdin.on("data", () => {
  for (const table of tables) writeFileSync(table.filename, table.serialize());
  process.kill(process.pid, "SIGKILL");
});

require(azurite);
