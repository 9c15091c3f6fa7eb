import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import { fetchers, hardware, modelsLeftOut, upstreams } from "../../../relay/web/src/detail";

test("a node's hardware is a line", () => {
  const detail = { gpus: [{ name: "RTX 4090", bytes: 24 * 2 ** 30 }], cpu: "Ryzen", cpu_cores: 1, ram_bytes: 2 ** 36, os: "Linux", machine: "x86_64" };
  equal(hardware(detail), "RTX 4090, 24.0 GiB · Ryzen, 1 core · 64.0 GiB RAM · Linux x86_64");
  equal(hardware({}), "–");
});

test("an upstream that is down is told with its reason, and none of a node that is offline", () => {
  const detail = { upstreams: { ollama: { kind: "ollama", up: false, error: "refused" }, llama: { up: true } } };
  deepEqual(upstreams({ state: "ready", detail }), [
    { name: "ollama", kind: "ollama", up: false, error: "refused" },
    { name: "llama", kind: "", up: true, error: "" },
  ]);
  deepEqual(upstreams({ state: "offline", detail }), []);
});

test("a model can be deployed on an Ollama or LM Studio that is up", () => {
  const detail = { upstreams: { a: { kind: "ollama", up: true }, b: { kind: "lm-studio", up: false }, c: { kind: "toString", up: true } } };
  deepEqual(fetchers({ state: "ready", detail }).map((one) => one.word), ["ollama"]);
  deepEqual(fetchers({ state: "offline", detail }), []);
});

test("models that a node cannot tell of are counted", () => {
  equal(modelsLeftOut({ models_left_out: 88 }), 88);
  equal(modelsLeftOut({}), 0);
  for (const told of HOSTILE) equal(typeof modelsLeftOut({ models_left_out: told }), "number");
});

// A node that broke the page could not be removed on it.
const HOSTILE: unknown[] = [null, 1, "x", [], [null], {}, { toString: 1, valueOf: 1 }, [{ toString: 1, valueOf: 1 }], { name: { toString: 1 } }];

test("no word of a node breaks the page", () => {
  for (const told of HOSTILE) {
    for (const inner of HOSTILE) {
      const nested = { name: inner, bytes: inner, kind: inner, up: inner, error: inner };
      for (const value of [told, nested, [nested], { u: nested }])
        for (const name of ["gpus", "cpu", "cpu_cores", "ram_bytes", "os", "machine", "upstreams"]) {
          const detail = { [name]: value };
          equal(typeof hardware(detail), "string");
          equal(Array.isArray(upstreams({ state: "ready", detail })), true);
          equal(Array.isArray(fetchers({ state: "ready", detail })), true);
        }
    }
  }
});
