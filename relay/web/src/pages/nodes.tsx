// Nodes: the state of each; add, drain, remove.

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { patch, post, remove } from "../api";
import { engine, hardware, modelsLeftOut, upstreams } from "../detail";
import { byName, count, date, rate, span } from "../format";
import type { ModelView, NodeView } from "../generated/api";
import { nodes, pulse, relayNow } from "../live";
import { Badge, Dialog, Empty, Page, Problem, Sure, paged, told } from "../parts/basics";
import { Machine } from "../parts/machine";
import { AddNode, OpenInvites } from "./invites";
import { Slots } from "./overview";

const SHOWN = 10; // cards a page
const FILTER_FROM = 8; // fewer need no filter

export function NodesPage() {
  const filter = useSignal("");
  const at = useSignal(0);
  const adding = useSignal(false);
  const problem = useSignal("");
  const all = [...nodes.value.values()].sort(byName);
  const wanted = filter.value.trim().toLowerCase();
  const found = all.filter((node) => `${node.name} ${node.state} ${node.models.join(" ")}`.toLowerCase().includes(wanted));
  const page = paged(found, at, SHOWN, "nodes");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  return (
    <Page
      title="Nodes"
      actions={<button type="button" class="primary" onClick={() => (adding.value = true)}>Add a node</button>}
    >
      <Problem text={problem.value} />
      {all.length >= FILTER_FROM && (
        <input type="search" class="filter" placeholder="Filter by name, state or model" aria-label="Filter nodes" value={filter} onInput={(event) => (filter.value = event.currentTarget.value)} />
      )}
      {all.length > 0 && found.length === 0 && <Empty title="No node is like that" />}
      {all.length === 0 ? (
        <Empty title="No node has joined yet">Add one: it dials out from the GPU box, nothing is opened on it.</Empty>
      ) : (
        <div class="cards">{page.shown.map((node) => <NodeCard key={node.id} node={node} act={act} />)}</div>
      )}
      {page.turn}
      <OpenInvites />
      {adding.value && <AddNode onClose={() => (adding.value = false)} />}
    </Page>
  );
}

type Act = (call: () => Promise<unknown>) => void;

/** Drawn again only when its node has changed, which most have not between two events. */
function NodeCard({ node, act }: { node: NodeView; act: Act }) {
  return useMemo(() => card(node, act), [node]);
}

function card(node: NodeView, act: Act) {
  const down = upstreams(node).filter((upstream) => !upstream.up);
  const path = `/nodes/${node.id}`;
  const verb = node.state === "draining" ? "undrain" : "drain";
  return (
    <article class="card node" aria-label={node.name}>
      <header>
        <h2>{node.name}</h2>
        <Badge state={node.state} />
        <span class="spacer" />
        <button type="button" class="small" onClick={() => act(() => post(`${path}/${verb}`))} aria-label={`${verb === "drain" ? "Drain" : "Give requests again to"} ${node.name}`}>
          {verb === "drain" ? "Drain" : "Give requests again"}
        </button>
        <Sure label="Remove" question="Remove for good?" name={node.name} onSure={() => act(() => remove(path))} />
      </header>
      <dl>
        <div><dt>Slots</dt><dd><Slots busy={node.slots_busy} total={node.slots_total} /></dd></div>
        <div><dt>Queue</dt><dd class="num">{count(node.queued)}</dd></div>
        <div><dt>Uptime</dt><dd><Uptime since={node.connected_at} /></dd></div>
        <div><dt>Reconnects</dt><dd class="num">{count(node.reconnects)}</dd></div>
        <div><dt>Joined</dt><dd>{date(node.joined_at)}</dd></div>
        <div><dt>Version</dt><dd>{node.version || "–"}</dd></div>
        <div class="wide"><dt>Hardware</dt><dd>{hardware(node.detail)}</dd></div>
      </dl>
      {node.state !== "offline" && <Machine node={node.id} />}
      {node.copied && (
        <p class="problem">A second machine uses this node's identity and is refused: its data folder was copied. Join that machine with a new invite and a fresh data folder.</p>
      )}
      {down.map((upstream) => (
        <p key={upstream.name} class="problem">{upstream.name} does not serve: {upstream.error || "it is down"}</p>
      ))}
      {node.state !== "offline" && engine(node.detail).problem && <p class="problem">{engine(node.detail).problem}</p>}
      {modelsLeftOut(node.detail) > 0 && (
        <p class="problem">{count(modelsLeftOut(node.detail))} more models are not served: a node can tell of 512 at most.</p>
      )}
      {node.serving.length === 0 && node.state === "ready" && down.length === 0 && (
        <p class="hint">It serves no model yet. Deploy one on the Models page, or start a server on the box: the node finds it by itself.</p>
      )}
      {node.serving.length > 0 && (
        <div class="scroll">
          <table class="stack dense">
            <thead>
              <tr><th>Model</th><th>Upstream</th><th class="num">Context</th><th class="num">Slots</th><th class="num">Tokens/s</th></tr>
            </thead>
            <tbody>
              {node.serving.map((model) => (
                <tr key={`${model.upstream} ${model.id}`}>
                  <td data-label="Model" class="long">{model.id} {!model.ready ? <Badge state="not ready" /> : model.loaded === false && <Badge state="asleep" />}</td>
                  <td data-label="Upstream" class="muted long">{model.upstream}</td>
                  <td data-label="Context" class="num">{count(model.context_tokens)}</td>
                  <td data-label="Slots" class="num"><ModelSlots node={node} model={model} act={act} /></td>
                  <td data-label="Tokens/s" class="num">{rate(model.decode_tps)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </article>
  );
}

/** How busy it is; where the server does not tell its slots, they can be set. */
function ModelSlots({ node, model, act }: { node: NodeView; model: ModelView; act: Act }) {
  const asking = useSignal(false);
  const text = model.ready ? `${model.slots_busy}/${model.slots_total ?? "?"}` : "–";
  const set = node.slots_set?.[model.upstream];
  if (model.slots_total !== null && set === undefined) return <>{text}</>;
  const save = (event: Event) => {
    event.preventDefault();
    const given = String(new FormData(event.currentTarget as HTMLFormElement).get("slots"));
    asking.value = false;
    act(() => patch(`/nodes/${node.id}`, { slots: { [model.upstream]: given ? Number(given) : null } }));
  };
  return (
    <>
      <button type="button" class="why" onClick={() => (asking.value = true)} aria-label={`Slots of ${model.upstream}: ${text}`}>{text}</button>
      {asking.value && (
        <Dialog title={`Slots of ${model.upstream}`} onClose={() => (asking.value = false)}>
          <form onSubmit={save}>
            <label>
              Requests that it works on at once
              <input name="slots" type="number" min="1" max="4096" defaultValue={set === undefined ? "" : String(set)} placeholder="learned" />
            </label>
            <p class="hint">This server does not tell it. Leave it empty, and the relay learns it from how its answers advance.</p>
            <button type="submit" class="primary">Save</button>
          </form>
        </Dialog>
      )}
    </>
  );
}

function Uptime(props: { since: number | null }) {
  pulse.value; // draw again as time passes, even if nothing else changed
  if (props.since === null) return <>–</>;
  return <span title={`connected since ${date(props.since)}`}>{span(relayNow() - props.since)}</span>;
}
