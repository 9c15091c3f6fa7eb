// When a deployment is in memory: its fields in a form, what is to be sent of them, and in words.

import { span } from "../format";
import type { ChangeDeployment, DeploymentView } from "../generated/api";

type Policy = Pick<DeploymentView, "load" | "idle_unload_s" | "priority">;
type Sent = Pick<ChangeDeployment, "load" | "idle_unload_s" | "priority">;
const DEFAULTS: Policy = { load: "keep_loaded", idle_unload_s: null, priority: 0 };
const LOADS = { keep_loaded: "kept loaded", on_demand: "on demand" } as const;

export function PolicyFields({ of: at = DEFAULTS }: { of?: Policy }) {
  return (
    <>
      <label>
        In memory
        <select name="load">
          {Object.entries(LOADS).map(([word, text]) => <option key={word} value={word} selected={word === at.load}>{text}</option>)}
        </select>
      </label>
      <label>
        Unload after idle seconds
        <input name="idle_unload_s" type="number" min={1} placeholder="if room is needed" defaultValue={at.idle_unload_s == null ? "" : String(at.idle_unload_s)} />
      </label>
      <label>
        Priority
        <input name="priority" type="number" min={-100} max={100} step={1} placeholder="0" defaultValue={at.priority ? String(at.priority) : ""} />
      </label>
    </>
  );
}

/** What `form` says otherwise than `was`: older nodes do not know the rest. A time means on demand. */
export function policyOf(form: FormData, was: Policy = DEFAULTS): Sent {
  const idle = Number(form.get("idle_unload_s")) || null;
  const load = idle !== null || form.get("load") === "on_demand" ? "on_demand" : "keep_loaded";
  const priority = Number(form.get("priority")) || 0;
  return {
    ...(load === was.load ? {} : { load }),
    ...(idle === was.idle_unload_s ? {} : { idle_unload_s: idle }),
    ...(priority === was.priority ? {} : { priority }),
  };
}

/** What is not the default, in words; "" if all is. */
export function policyText(row: DeploymentView): string {
  return [
    (!row.served_by || row.served_by === "vllm") && row.load === "on_demand" && (row.load_ms ? `on demand, loads in ${span(Math.ceil(row.load_ms / 1000))}` : "on demand"),
    row.idle_unload_s != null && `unloaded after ${span(row.idle_unload_s)}`,
    row.priority && `priority ${row.priority}`,
  ].filter(Boolean).join(" · ");
}
