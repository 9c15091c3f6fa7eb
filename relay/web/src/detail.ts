// A node's description of itself, as text. The node may be of another version, or hostile: any JSON
// may come, and must not break the page on which an admin removes the node.

import type { NodeView } from "./generated/api";
import { bytes } from "./format";

export interface UpstreamDetail {
  name: string;
  kind: string;
  up: boolean;
  error: string;
}

/** The node's upstreams; none if it is offline. */
export function upstreams(node: Pick<NodeView, "state" | "detail">): UpstreamDetail[] {
  if (node.state === "offline") return [];
  return Object.entries(fields(node.detail["upstreams"])).map(([name, told]) => {
    const one = fields(told);
    return { name, kind: text(one["kind"]), up: one["up"] !== false, error: text(one["error"]) };
  });
}

/** The servers there that fetch models themselves: how models on them are named, and what they are called. */
const FETCHERS: Record<string, { word: string; title: string; example: string }> = {
  ollama: { word: "ollama", title: "Ollama", example: "qwen3:8b" },
  "lm-studio": { word: "lmstudio", title: "LM Studio", example: "openai/gpt-oss-20b" },
};

/** Which servers of the node can be told to fetch a model. */
export function fetchers(node: Pick<NodeView, "state" | "detail">) {
  const kinds = new Set(upstreams(node).filter((upstream) => upstream.up).map((upstream) => upstream.kind));
  return Object.entries(FETCHERS).filter(([kind]) => kinds.has(kind)).map(([, fetcher]) => fetcher);
}

/** How many models the node serves beyond those that it can report to the relay. */
export function modelsLeftOut(detail: Record<string, unknown>): number {
  return number(detail["models_left_out"]);
}

export interface EngineDetail {
  /** The node has said that it has no llama-server. */
  missing: boolean;
  problem: string;
  /** What it would install. */
  offer: string;
}

/** What the node says of the engine that runs deployed models. Older nodes say nothing. */
export function engine(detail: Record<string, unknown>): EngineDetail {
  const told = fields(detail["engine"]);
  return { missing: told["name"] === null, problem: text(told["problem"]), offer: text(told["offer"]) };
}

/** The node's GPUs, processor, memory and system in one line. */
export function hardware(detail: Record<string, unknown>): string {
  const cards = (Array.isArray(detail["gpus"]) ? detail["gpus"] : []).map(fields);
  const cores = number(detail["cpu_cores"]);
  const ram = number(detail["ram_bytes"]);
  const said = [
    ...cards.map((card) => `${text(card["name"]) || "GPU"}, ${bytes(number(card["bytes"]))}`),
    [text(detail["cpu"]), cores && `${cores} ${cores === 1 ? "core" : "cores"}`].filter(Boolean).join(", "),
    ram && `${bytes(ram)} RAM`,
    [text(detail["os"]), text(detail["machine"])].filter(Boolean).join(" "),
  ];
  return said.filter(Boolean).join(" · ") || "–";
}

// String() and Number() call an object's `toString`, which in JSON may be any value.
const text = (value: unknown) => (typeof value === "string" ? value : "");
const number = (value: unknown) => (typeof value === "number" ? value : 0);
const fields = (value: unknown) => (typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {});
