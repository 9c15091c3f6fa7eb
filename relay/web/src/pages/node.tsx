// One node: what it is, what it serves, how its last hour was; drain and remove.

import { useSignal } from "@preact/signals";
import { get, patch, post, remove } from "../api";
import { engine, hardware, modelsLeftOut, upstreams } from "../detail";
import { count, cutInTheMiddle, date, ms, rate } from "../format";
import type { ModelView, NodeHistory, NodeView } from "../generated/api";
import { figures, nodes } from "../live";
import { Badge, Dialog, Empty, Name, Page, Problem, Slots, Sure, told } from "../parts/basics";
import { Chart } from "../parts/chart";
import { useFetched } from "../parts/fetched";
import { Link } from "../parts/link";
import { Machine } from "../parts/machine";
import { go } from "../route";
import { Uptime } from "./nodes";

const LOOK_MS = 15_000; // a step of its history
const LEAST_STEPS = 40; // ten minutes
const TITLE_CHARS = 40;

type Act = (call: () => Promise<unknown>) => void;

export function NodePage({ name }: { name: string }) {
  const node = [...nodes.value.values()].find((one) => one.name === name || one.id === name);
  const problem = useSignal("");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  const title = cutInTheMiddle(node?.name ?? name, TITLE_CHARS);
  if (!node) {
    return (
      <Page title={title} above={<Link to="nodes">Nodes</Link>}>
        <Empty title="There is no such node">It was removed or renamed, or the relay has not told of it yet.</Empty>
      </Page>
    );
  }
  const path = `/nodes/${node.id}`;
  const drained = node.state === "draining";
  const leave = async () => {
    await act(() => remove(path));
    if (!problem.value) go("nodes");
  };
  return (
    <Page
      title={title}
      above={<Link to="nodes">Nodes</Link>}
      actions={
        <>
          <button type="button" class="small" onClick={() => act(() => post(`${path}/${drained ? "undrain" : "drain"}`))} aria-label={`${drained ? "Give requests again to" : "Drain"} ${node.name}`}>
            {drained ? "Give requests again" : "Drain"}
          </button>
          <Sure label="Remove" question="Remove for good?" name={node.name} onSure={() => void leave()} />
        </>
      }
    >
      <Problem text={problem.value} />
      <Wrong node={node} />
      <section class="card node" aria-label="State">
        <Facts node={node} />
        {node.state !== "offline" && <Machine node={node.id} />}
      </section>
      <Served node={node} act={act} />
      <LastHour node={node} />
    </Page>
  );
}

/** What is wrong with it, by its own word. */
function Wrong({ node }: { node: NodeView }) {
  const down = upstreams(node).filter((upstream) => !upstream.up);
  const left = modelsLeftOut(node.detail);
  const texts = [
    node.state === "offline" && "It is not connected: nothing below is newer than its last connection.",
    node.copied && "A second machine uses this node's identity and is refused: its data folder was copied. Join that machine with a new invite and a fresh data folder.",
    ...down.map((upstream) => `${upstream.name} does not serve: ${upstream.error || "it is down"}`),
    node.state !== "offline" && engine(node.detail).problem,
    left > 0 && `${count(left)} more models are not served: a node can tell of 512 at most.`,
  ];
  return <>{texts.filter(Boolean).map((text) => <p key={text} class="problem">{text}</p>)}</>;
}

function Facts({ node }: { node: NodeView }) {
  const now = node.state === "offline" ? undefined : figures.value.get(node.id);
  return (
    <dl>
      <div><dt>State</dt><dd><Badge state={node.state} /></dd></div>
      <div><dt>Slots</dt><dd><Slots busy={node.slots_busy} total={node.slots_total} /></dd></div>
      <div><dt>Queue</dt><dd class="num">{count(node.queued)}</dd></div>
      <div><dt>Tokens/s</dt><dd class="num">{rate(now?.tokens_per_s)}</dd></div>
      <div><dt>Round trip</dt><dd class="num">{ms(now?.rtt_ms)}</dd></div>
      <div><dt>Uptime</dt><dd title={node.connected_at === null ? undefined : `connected since ${date(node.connected_at)}`}><Uptime since={node.connected_at} /></dd></div>
      <div><dt>Reconnects</dt><dd class="num">{count(node.reconnects)}</dd></div>
      <div><dt>Joined</dt><dd>{date(node.joined_at)}</dd></div>
      <div><dt>Version</dt><dd><Name text={node.version || "–"} most={24} /></dd></div>
      <div><dt>Deployments</dt><dd>{node.may_deploy ? "allowed" : "not allowed"}</dd></div>
      <div class="wide"><dt>Hardware</dt><dd>{hardware(node.detail)}</dd></div>
    </dl>
  );
}

function Served({ node, act }: { node: NodeView; act: Act }) {
  if (node.serving.length === 0) {
    if (node.state !== "ready") return null;
    return <Empty title="It serves no model yet">Deploy one on the Models page, or start a server on the box: the node finds it by itself.</Empty>;
  }
  return (
    <section class="card scroll" aria-label="Models">
      <h2>Models</h2>
      <table class="stack dense">
        <thead>
          <tr><th>Model</th><th>Upstream</th><th class="num">Context</th><th class="num">Slots</th><th class="num">Tokens/s</th></tr>
        </thead>
        <tbody>
          {node.serving.map((model) => (
            <tr key={`${model.upstream} ${model.id}`}>
              <td data-label="Model" class="long"><Name text={model.id} most={48} /> {!model.ready ? <Badge state="not ready" /> : model.loaded === false && <Badge state="asleep" />}</td>
              <td data-label="Upstream" class="muted long"><Name text={model.upstream} most={32} /></td>
              <td data-label="Context" class="num">{count(model.context_tokens)}</td>
              <td data-label="Slots" class="num"><ModelSlots node={node} model={model} act={act} /></td>
              <td data-label="Tokens/s" class="num">{rate(model.decode_tps)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
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

/** Its last hour, as the relay saw it; a gap is where the node was away. */
function LastHour({ node }: { node: NodeView }) {
  const { value, problem } = useFetched(() => get<NodeHistory>(`/nodes/${node.id}/history`), [node.id], LOOK_MS);
  // Before the relay's start nothing is known: that part is left out, but never of the latest minutes.
  const steps = value?.slots_busy.length ?? 0;
  const first = value ? [...value.tokens_per_s.keys()].findIndex((at) => value.tokens_per_s[at] || value.slots_busy[at] !== null) : 0;
  const from = Math.max(0, Math.min(first < 0 ? steps : first, steps - LEAST_STEPS));
  const times = Array.from({ length: steps - from }, (_, index) => value!.until - (steps - from - 1 - index) * value!.step_s);
  const late = (values: (number | null)[]) => values.slice(from);
  return (
    <section class="card" aria-label="The last hour">
      <div class="line">
        <h2>The last hour</h2>
        <span class="spacer" />
        <Link to={`requests?over=&node=${encodeURIComponent(node.name)}`}>Its requests</Link>
      </div>
      <Problem text={problem} />
      {value && (
        <div class="charts">
          <figure>
            <figcaption>Tokens per second</figcaption>
            <Chart times={times} lines={[{ label: "tokens/s", colour: "--accent", values: late(value.tokens_per_s) }]} height={150} label="Tokens per second over the last hour" />
          </figure>
          <figure>
            <figcaption>Slots</figcaption>
            <Chart times={times} lines={[{ label: "all", colour: "--second", values: late(value.slots_total) }, { label: "busy", colour: "--accent", values: late(value.slots_busy) }]} height={150} label="Slots over the last hour" />
          </figure>
          <figure>
            <figcaption>Use of the {gpus(node) ? "busiest GPU" : "processor"}, %</figcaption>
            <Chart times={times} top={100} lines={[{ label: "%", colour: "--accent", values: late(value.use) }]} height={150} label="Use of the machine over the last hour" />
          </figure>
          <figure>
            <figcaption>Reconnections</figcaption>
            <Chart times={times} lines={[{ label: "reconnections", colour: "--warn", bars: true, values: late(value.reconnects) }]} height={150} label="Reconnections over the last hour" />
          </figure>
        </div>
      )}
    </section>
  );
}

const gpus = (node: NodeView) => Array.isArray(node.detail["gpus"]) && node.detail["gpus"].length > 0;
