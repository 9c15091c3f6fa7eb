import { equal } from "node:assert/strict";
import { test } from "node:test";
import { details } from "../../../relay/web/src/audit";

test("what was changed is told beside its name, and a limit that was lifted is none", () => {
  equal(details({ detail: { name: "app", rpm: null, models: ["a", "b"], local_only: true } }), "rpm none, models a, b, local_only yes");
  equal(details({ detail: { name: "app", models: [] } }), "models none");
  equal(details({ detail: {} }), "");
});

test("a time is told as people read it", () => {
  equal(details({ detail: { expires_at: 1.8e9 } }).slice(0, 22), "expires_at 15 Jan 2027");
});

test("what a newer relay tells is shown too", () => {
  equal(details({ detail: { why: { a: 1 } } }), 'why {"a":1}');
});
