// The page at / in jsdom, for tests/e2e/test_page.py: node page.js JSDOM URL MESSAGE
// It asks as a person does, and prints what then stands there as JSON.
"use strict";
const [, , at, url, message] = process.argv;
const { JSDOM, VirtualConsole } = require(at);

const faults = [];
const virtualConsole = new VirtualConsole();
virtualConsole.on("jsdomError", (error) => faults.push(error.message));

function withWhatBrowsersHave(window) {
  // A URL is the page's own there, and of nobody here.
  window.fetch = (path, { signal, ...rest } = {}) => fetch(new URL(path, url), rest);
  window.TextDecoder = TextDecoder;
  window.HTMLElement.prototype.scrollIntoView = () => {};
}

async function until(true_) {
  while (!true_()) {
    if (faults.length) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function main() {
  const { window } = await JSDOM.fromURL(url, {
    runScripts: "dangerously", pretendToBeVisual: true, virtualConsole, beforeParse: withWhatBrowsersHave,
  });
  const find = (id) => window.document.getElementById(id);
  await until(() => find("model").value || find("key").validationMessage);
  if (message) {
    find("message").value = message;
    find("form").requestSubmit();
    await until(() => find("answer").getAttribute("aria-busy") === "false");
  }
  const all = (query) => [...window.document.querySelectorAll(query)].map((it) => it.textContent);
  console.log(JSON.stringify({
    faults, model: find("model").value, answer: find("answer").textContent, status: find("status").textContent,
    key: find("key-hint").textContent, fault: find("fault").textContent, endpoints: all("#list summary .path"), codes: all("#codes code"),
  }));
  process.exit();
}

main();
