import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import { LIMITS, NO_LIMITS } from "../../../relay/web/src/generated/api";
import { day, differing, limitsOf, limitsText } from "../../../relay/web/src/limits";

function form(fields: Record<string, string>): FormData {
  const made = new FormData();
  for (const [name, value] of Object.entries(fields)) made.set(name, value);
  return made;
}

test("every limit is told: one that is not would pass for no limit", () => {
  equal(limitsText(NO_LIMITS, 0), "none");
  const all = { rpm: 60, tpm: 9000, concurrency: 2, monthly_tokens: 1e6, models: ["qwen"], nodes: ["box"] };
  const said = limitsText({ ...NO_LIMITS, ...all, local_only: true, priority: -1, continue: true }, 0);
  equal(said, "60 req/min · 9K tok/min · 2 at once · 1M tok/month · only qwen · only on box · own nodes only · priority -1 · continued");
});

test("no limit is left out of the text, whichever there are", () => {
  const values = { count: 7, time: 1.8e9, names: ["a"], switch: true, rank: 1 };
  for (const { name, kind } of LIMITS) equal(limitsText({ ...NO_LIMITS, [name]: values[kind] }, 0) === "none", false, name);
});

test("a key that is past its day is told from one that is not", () => {
  equal(limitsText({ ...NO_LIMITS, expires_at: 86_400 }, 86_399).slice(0, 5), "until");
  equal(limitsText({ ...NO_LIMITS, expires_at: 86_400 }, 86_400).slice(0, 7), "expired");
});

test("a form that is saved as it came changes nothing", () => {
  const known = { ...NO_LIMITS, rpm: 60, expires_at: 1.8e9 + 5, models: ["a b", "c:d"], priority: 2, continue: true };
  const as_it_came = { rpm: "60", expires_at: day(known.expires_at), models: "a b, c:d", priority: "2", continue: "on" };
  deepEqual(limitsOf(form(as_it_came), known), known);
});

test("an empty field is no limit, and another day is that day's beginning in UTC", () => {
  const known = { ...NO_LIMITS, rpm: 60, expires_at: 1.8e9, nodes: ["box"] };
  deepEqual(limitsOf(form({ rpm: " ", nodes: ", ", expires_at: "" }), known), NO_LIMITS);
  deepEqual(limitsOf(form({ expires_at: "2027-01-31" }), known), { ...NO_LIMITS, expires_at: Date.UTC(2027, 0, 31) / 1000 });
});

test("only what differs is told", () => {
  deepEqual(differing({ ...NO_LIMITS, rpm: 5, models: ["a"] }, { ...NO_LIMITS, models: ["a"] }), { rpm: 5 });
  deepEqual(differing({ ...NO_LIMITS }, { ...NO_LIMITS, nodes: ["a"] }), { nodes: [] });
});
