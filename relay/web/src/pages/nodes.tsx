// Nodes: how each one is; add, drain, remove.

import { useSignal } from "@preact/signals";
import { type NodeView, post, remove } from "../api";
import { compact, rate, span } from "../format";
import { nodes, relayNow } from "../live";
import { Badge, Code, Dialog, Empty, Page, Problem, Sure, told } from "../parts/basics";
import { Slots } from "./overview";

export function NodesPage() {
  const adding = useSignal(false);
  const problem = useSignal("");
  const all = [...nodes.value.values()];
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  return (
    <Page
      title="Nodes"
      actions={<button type="button" class="primary" onClick={() => (adding.value = true)}>Add a node</button>}
    >
      <Problem text={problem.value} />
      {all.length === 0 ? (
        <Empty title="No node has joined yet">Add one: it dials out from the GPU box, nothing is opened on it.</Empty>
      ) : (
        <div class="cards">{all.map((node) => <NodeCard key={node.id} node={node} act={act} />)}</div>
      )}
      {adding.value && <AddNode onClose={() => (adding.value = false)} />}
    </Page>
  );
}

function NodeCard({ node, act }: { node: NodeView; act: (call: () => Promise<unknown>) => void }) {
  const path = `/nodes/${node.id}`;
  const verb = node.state === "draining" ? "undrain" : "drain";
  return (
    <article class="card node" aria-label={node.name}>
      <header>
        <h2>{node.name}</h2>
        <Badge state={node.state} />
        <span class="spacer" />
        <button type="button" class="small" onClick={() => act(() => post(`${path}/${verb}`))}>
          {verb === "drain" ? "Drain" : "Give requests again"}
        </button>
        <Sure label="Remove" question="Remove for good?" name={node.name} onSure={() => act(() => remove(path))} />
      </header>
      <dl>
        <div><dt>Slots</dt><dd><Slots busy={node.slots_busy} total={node.slots_total} /></dd></div>
        <div><dt>Queue</dt><dd class="num">{node.queued}</dd></div>
        <div><dt>Joined</dt><dd>{span(relayNow() - node.joined_at)} ago</dd></div>
        <div><dt>Reconnects</dt><dd class="num">{node.reconnects}</dd></div>
        <div><dt>Hardware</dt><dd>{hardware(node.detail)}</dd></div>
        <div><dt>Version</dt><dd>{node.version || "–"}</dd></div>
      </dl>
      {node.serving.length > 0 && (
        <div class="scroll">
          <table>
            <thead>
              <tr><th>Model</th><th>Upstream</th><th class="num">Context</th><th class="num">Slots</th><th class="num">Tokens/s</th></tr>
            </thead>
            <tbody>
              {node.serving.map((model) => (
                <tr key={`${model.upstream} ${model.id}`}>
                  <td>{model.id}</td>
                  <td class="muted">{model.upstream}</td>
                  <td class="num">{compact(model.context_tokens)}</td>
                  <td class="num">{model.slots_busy}/{model.slots_total ?? "?"}</td>
                  <td class="num">{rate(model.decode_tps)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </article>
  );
}

function hardware(detail: Record<string, unknown>): string {
  const said = ["gpu", "gpus", "cpu", "os", "machine"].map((name) => detail[name]);
  const words = said.flatMap((value) => (typeof value === "string" && value ? [value] : []));
  return words.join(" · ") || "–";
}

function AddNode(props: { onClose: () => void }) {
  const name = useSignal("");
  const invite = useSignal("");
  const problem = useSignal("");
  const before = useSignal(new Set(nodes.value.keys()));
  const arrived = [...nodes.value.values()].find((node) => !before.value.has(node.id));
  const create = async (event: Event) => {
    event.preventDefault();
    problem.value = await told(async () => {
      const body = name.value.trim() ? { name: name.value.trim() } : {};
      invite.value = (await post<{ invite: string }>("/invites", body)).invite;
      before.value = new Set(nodes.value.keys());
    });
  };
  return (
    <Dialog title="Add a node" onClose={props.onClose}>
      {!invite.value ? (
        <form onSubmit={create}>
          <label>
            Name <span class="muted">(optional)</span>
            <input value={name} placeholder="gpu-box" autofocus onInput={(event) => (name.value = event.currentTarget.value)} />
          </label>
          <button type="submit" class="primary">Make the command</button>
          <Problem text={problem.value} />
        </form>
      ) : (
        <>
          <p>Run this on the GPU box. It is good for one node, and shown this once.</p>
          <Code text={`wai node join ${invite.value} && wai node run`} label="command" />
          <p class={arrived ? "waiting arrived" : "waiting"} role="status">
            {arrived ? `${arrived.name} has arrived: ${arrived.state}` : "Waiting for it to arrive …"}
          </p>
        </>
      )}
    </Dialog>
  );
}
