import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import type { PulseView } from "../../../relay/web/src/generated/api";
import { everyStep, sinceFirst, withPulse } from "../../../relay/web/src/history";

const beat = (at: number, rate: number): PulseView => ({
  at,
  tokens_per_s: rate,
  running: 1,
  queued: 0,
  requests_hour: 0,
  errors_hour: 0,
  tokens_hour: 0,
  ttft_p50_ms: null,
  ttft_p99_ms: null,
});
const hour = { step: 2, until: 10, rates: [1, 2, 3], running: [0, 0, 0] };

test("a beat goes to the end and the oldest goes, so that the hour stays an hour", () => {
  const next = withPulse(hour, beat(12, 7));
  deepEqual(next, { step: 2, until: 12, rates: [2, 3, 7], running: [0, 0, 1] });
  deepEqual(hour.rates, [1, 2, 3]);
});

test("a beat that the history has already is not counted twice", () => {
  equal(withPulse(hour, beat(10, 7)), hour);
  equal(withPulse(hour, beat(8, 7)), hour);
});

test("the silence before the first request is not drawn, but never less than the least", () => {
  const quiet = Array.from({ length: 100 }, () => 0);
  equal(sinceFirst(quiet, 10).length, 10);
  equal(sinceFirst([...quiet, 5], 10).length, 10);
  equal(sinceFirst([...quiet, ...Array.from({ length: 50 }, () => 1)], 10).length, Math.ceil(50 * 1.1));
  equal(sinceFirst([1, 2], 10).length, 2);
});

test("an hour or a day in which nothing was used is a zero, not a gap", () => {
  const rows = [{ group: "2026-11-23T12:00Z", prompt_tokens: 3, completion_tokens: 4 }];
  const noon = Date.UTC(2026, 10, 23, 12) / 1000;
  deepEqual(everyStep(rows, noon - 3000, noon + 3600, 3600), [
    { at: noon - 3600, prompt: 0, completion: 0 },
    { at: noon, prompt: 3, completion: 4 },
    { at: noon + 3600, prompt: 0, completion: 0 },
  ]);
  const day = [{ group: "2026-11-23", prompt_tokens: 1, completion_tokens: 2 }];
  deepEqual(everyStep(day, noon, noon, 86_400), [{ at: noon - 43_200, prompt: 1, completion: 2 }]);
});
