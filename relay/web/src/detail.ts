// What a node says of itself, as text. It may be of another version, or hostile: any JSON may come,
// and none of it may break the page that removes the node.

import type { NodeView } from "./generated/api";
import { bytes } from "./format";

export interface UpstreamDetail {
  name: string;
  up: boolean;
  error: string;
}

/** The node's upstreams; of a node that is offline, none. */
export function upstreams(node: Pick<NodeView, "state" | "detail">): UpstreamDetail[] {
  if (node.state === "offline") return [];
  return Object.entries(fields(node.detail["upstreams"])).map(([name, told]) => {
    const one = fields(told);
    return { name, up: one["up"] !== false, error: text(one["error"]) };
  });
}

/** How many models the node serves beyond those that it can tell the relay of. */
export function modelsLeftOut(detail: Record<string, unknown>): number {
  return number(detail["models_left_out"]);
}

/** The node's GPUs, processor, memory and system in a line. */
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

// String() and Number() call what an object has under `toString`: JSON may have anything there.
const text = (value: unknown) => (typeof value === "string" ? value : "");
const number = (value: unknown) => (typeof value === "number" ? value : 0);
const fields = (value: unknown) => (typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {});
