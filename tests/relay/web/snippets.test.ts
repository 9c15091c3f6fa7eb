import { deepEqual } from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { snippets } from "../../../relay/web/src/snippets";

// A model's id is its node's word, and what stands here is pasted into a shell.
const HOSTILE = ["x'; echo run; '", 'x", "a": "b', "x\\", "$(echo run)`echo run`", "two\nlines", "\u009b31m", "it's \"quoted\"", "a\u202eb\u200bc"];
const shown = (model: string) => snippets("https://llm.example/v1", "wai_sk_1", model);

test("a model's name is nothing but a name to a shell, whatever the node calls it", () => {
  for (const model of HOSTILE) {
    // `curl` is a function here that tells its last argument.
    const script = `curl() { for last; do :; done; printf %s "$last"; }\n${shown(model)["curl"]}`;
    const body = JSON.parse(execFileSync("sh", ["-c", script], { encoding: "utf8" })) as { model: string };
    deepEqual(body.model, model);
  }
});

test("nor to a shell that starts a program for it", () => {
  for (const model of HOSTILE) {
    for (const [program, words] of [["Claude Code", ["--model", model]], ["Aider", ["--model", `openai/${model}`]]] as const) {
      const script = `claude() { printf '%s\\0' "$@"; }; aider() { printf '%s\\0' "$@"; }\n${shown(model)[program]}`;
      deepEqual(execFileSync("sh", ["-c", script], { encoding: "utf8" }).split("\0").slice(0, -1), [...words]);
    }
  }
});

test("no name makes the lines look like what they are not", () => {
  for (const lines of Object.values(shown("a\u202e\u2066\u200bb\u2028"))) deepEqual(/[^\n -~…]/.exec(lines), null);
});

test("nor does it end a string in an app's code", () => {
  for (const model of HOSTILE) {
    for (const [language, pattern] of [["Python", /model=("(?:[^"\\\n]|\\.)*"),\n/], ["JavaScript", /model: ("(?:[^"\\\n]|\\.)*"),\n/]] as const) {
      const literal = pattern.exec(shown(model)[language] ?? "")?.[1] ?? "null";
      deepEqual(JSON.parse(literal), model);
    }
  }
});

test("a relay with its own authority is called with the file that says whom to trust", () => {
  const lines = snippets("https://llm.example/v1", "wai_sk_1", "m", true);
  deepEqual(/^curl -N --cacert relay-ca\.crt https:/.test(lines["curl"] ?? ""), true);
  deepEqual(/^# run it as: SSL_CERT_FILE=relay-ca\.crt python/.test(lines["Python"] ?? ""), true);
  deepEqual(/^\/\/ run it as: NODE_EXTRA_CA_CERTS=relay-ca\.crt node/.test(lines["JavaScript"] ?? ""), true);
  for (const program of ["Claude Code", "Aider", "Open WebUI", "Continue", "Cline", "LangChain"]) deepEqual(lines[program]?.includes("relay-ca.crt"), true);
  for (const text of Object.values(shown("m"))) deepEqual(text.includes("relay-ca.crt"), false);
});
