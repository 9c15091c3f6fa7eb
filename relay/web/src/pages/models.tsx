// Models: the deployments, how they are served, their log; `deploy` has what deploys new ones.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, patch, post, remove } from "../api";
import { fetchers } from "../detail";
import { bytes, count, span } from "../format";
import type { DeploymentView } from "../generated/api";
import { deployments, nodes } from "../live";
import { Badge, Dialog, Empty, Name, Page, Problem, Sure, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";
import { Link } from "../parts/link";
import { policyOf, PolicyFields, policyText } from "../parts/policy";
import { ServeFields, serveOf, serveText } from "../parts/serve";
import { ofNode } from "../route";
import { Fits, Search } from "./deploy";

const LOG_MS = 2000; // how often an open log is fetched from the node
const MIN_CONTEXT = 256;
const SHOWN_AWAY = 5; // names of nodes

export function ModelsPage() {
  const able = [...nodes.value.values()].some((node) => node.state === "ready" && node.may_deploy);
  const chosen = useSignal<string | null>(null);
  return (
    <Page title="Models" hint="GGUF models from the hub, served by your nodes">
      <Deployed />
      <section class="card">
        <h2>Deploy a model</h2>
        {able ? (
          <Search onChoose={(repo) => (chosen.value = repo)} />
        ) : (
          <Empty title="No node can deploy models now">It must be connected, and its invite must have allowed it.</Empty>
        )}
      </section>
      <OnServers />
      {chosen.value && <Fits repo={chosen.value} onClose={() => (chosen.value = null)} />}
    </Page>
  );
}

type Act = (call: () => Promise<unknown>) => void;

function pathOf(row: DeploymentView, rest = ""): string {
  return `/deployments/${encodeURIComponent(row.node)}${rest}?model=${encodeURIComponent(row.model)}`;
}

function Deployed() {
  const problem = useSignal("");
  const log = useSignal<DeploymentView | null>(null);
  const options = useSignal<DeploymentView | null>(null);
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  const rows = [...(deployments.value?.values() ?? [])].sort((a, b) => `${a.model} ${a.node}`.localeCompare(`${b.model} ${b.node}`));
  return (
    <section class="card scroll" aria-label="Deployed">
      <h2>Deployed</h2>
      <Problem text={problem.value} />
      {!rows.length ? (
        <Empty title={deployments.value ? "Nothing is deployed yet" : "Asking the nodes …"}>
          {deployments.value && "Search for a model below. Those that your own servers hold are on the Nodes page."}
        </Empty>
      ) : (
        <table class="stack">
          <thead>
            <tr><th>Model</th><th>Node</th><th>State</th><th class="num">Size</th><th>Context × slots</th><th><span class="unseen">Actions</span></th></tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr key={row.id} aria-label={`${row.model} on ${row.node}`}>
                <td data-label="Model" class="long">
                  <strong><Name text={row.model} most={44} /></strong>
                  {row.called && row.called !== row.model && <div class="muted small-text">callers ask for {row.called}</div>}
                  {optionsText(row) && <div class="muted small-text">{optionsText(row)}</div>}
                  {(row.reason || row.swap_error) && <div class={row.state === "starting" ? "muted small-text" : "bad small-text"}>{row.reason || row.swap_error}</div>}
                  <Cause row={row} />
                </td>
                <td data-label="Node" class="nowrap"><Link to={ofNode(row.node)} title={row.node}><Name text={row.node} most={18} /></Link></td>
                <td data-label="State"><Badge state={row.state === "starting" ? "loading" : row.state} /><Progress row={row} /></td>
                <td data-label="Size" class="num">{bytes(row.size_bytes)}<Memory row={row} /></td>
                {isElsewhere(row) ? (
                  <OnServer row={row} act={act} />
                ) : (
                  <>
                    <td data-label="Context × slots"><Context row={row} onChange={(wanted) => act(() => patch(pathOf(row), wanted))} /></td>
                    <td class="row-actions">
                      {row.state === "failed" && <Retry row={row} act={act} />}
                      <button type="button" class="small" onClick={() => (options.value = row)} aria-label={`${row.state === "failed" ? "Edit" : "Options of"} ${row.model}`}>{row.state === "failed" ? "Edit" : "Options"}</button>
                      <button type="button" class="small" onClick={() => (log.value = row)} aria-label={`Log of ${row.model}`}>Log</button>
                      <Sure label="Remove" question="Delete its files?" name={row.model} onSure={() => act(() => remove(pathOf(row)))} />
                    </td>
                  </>
                )}
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <Away />
      {log.value && <Log row={log.value} onClose={() => (log.value = null)} />}
      {options.value && <Options row={options.value} onClose={() => (options.value = null)} />}
    </section>
  );
}

function Retry({ row, act }: { row: DeploymentView; act: Act }) {
  return <button type="button" class="small" onClick={() => act(() => post(pathOf(row, "/retry")))} aria-label={`Retry ${row.model}`}>Retry</button>;
}

/** The last lines that the server of a failed deployment printed: why it failed is mostly among them. */
function Cause({ row }: { row: DeploymentView }) {
  if (row.state !== "failed" || !row.log_tail.length) return null;
  return (
    <details class="cause" open>
      <summary>What its server printed last</summary>
      <pre class="log" tabIndex={0} aria-label={`Last lines of ${row.model}`}>{row.log_tail.join("\n")}</pre>
    </details>
  );
}

/** Says whose models are not in the list: a node tells of them while it is connected. */
function Away() {
  const away = [...nodes.value.values()].filter((node) => node.may_deploy && ["offline", "reconnecting"].includes(node.state));
  if (!away.length) return null;
  const names = away.slice(0, SHOWN_AWAY).map((node) => node.name).join(", ");
  return <p class="hint below">Models on nodes that are not connected are not listed: {names}{away.length > SHOWN_AWAY && ` and ${count(away.length - SHOWN_AWAY)} more`}.</p>;
}

/** What it takes in memory by its server's log, beside what that was estimated at. */
function Memory({ row }: { row: DeploymentView }) {
  if (row.seen_bytes === null) return null;
  return (
    <div class="muted small-text" title="What its server's buffers take, and what they were estimated at">
      takes {bytes(row.seen_bytes)}{row.estimated_bytes !== null && ` of ${bytes(row.estimated_bytes)} estimated`}
    </div>
  );
}

/** Whether a server that was there before has it, and not one of the node's own. */
function isElsewhere(row: DeploymentView): boolean {
  return row.served_by !== "" && row.served_by !== "vllm";
}

/** The last cells of a model that Ollama or LM Studio has: it decides how the model is served. */
function OnServer({ row, act }: { row: DeploymentView; act: Act }) {
  const verb = row.state === "ready" ? "unload" : "load";
  const settled = ["ready", "asleep", "failed"].includes(row.state);
  const question = row.served_by === "lm-studio" ? "LM Studio keeps its files. Remove?" : "Delete it there, if it was fetched for this?";
  return (
    <>
      <td data-label="Context × slots" class="muted small-text">{row.context_served ? `${count(row.context_served)} tokens` : `as ${row.served_by} decides`}</td>
      <td class="row-actions">
        {row.state === "failed" && <Retry row={row} act={act} />}
        {settled && row.called && row.state !== "failed" && (
          <button type="button" class="small" onClick={() => act(() => post(pathOf(row, `/${verb}`)))} aria-label={`${verb === "load" ? "Load" : "Unload"} ${row.model}`}>
            {verb === "load" ? "Load" : "Unload"}
          </button>
        )}
        <Sure label="Remove" question={question} name={row.model} onSure={() => act(() => remove(pathOf(row)))} />
      </td>
    </>
  );
}

/** Deploys on the Ollama or LM Studio of a node: it fetches the model by its own name for it. */
function OnServers() {
  const problem = useSignal("");
  const busy = useSignal(false);
  const able = [...nodes.value.values()]
    .filter((node) => node.state === "ready" && node.may_deploy)
    .flatMap((node) => fetchers(node).map((server) => ({ node: node.name, ...server })));
  if (!able.length) return null;
  const deploy = async (event: Event) => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const given = new FormData(form);
    const place = able[Number(given.get("place"))];
    if (!place) return;
    busy.value = true;
    const name = String(given.get("name")).trim();
    problem.value = await told(() => post("/deployments", { node: place.node, model: `${place.word}:${name}` }));
    busy.value = false;
    if (!problem.value) form.reset();
  };
  return (
    <section class="card" aria-label="Deploy on a server">
      <h2>Deploy on a server that is there</h2>
      <form class="line servers" onSubmit={deploy}>
        <select name="place" aria-label="Server">
          {able.map((place, at) => <option key={`${place.node} ${place.word}`} value={at}>{place.title} on {place.node}</option>)}
        </select>
        <input name="name" required maxLength={250} placeholder={able.map((place) => place.example).filter((example, at, all) => all.indexOf(example) === at).join(", ")} aria-label="Name of the model there" />
        <button type="submit" class="primary" disabled={busy.value}>{busy.value ? "Deploying …" : "Deploy"}</button>
      </form>
      <Problem text={problem.value} />
      <p class="hint">The server fetches the model itself, by its own name, and decides how it is served.</p>
    </section>
  );
}

/** What a deployment is for, and its options that are not the defaults. */
function optionsText(row: DeploymentView): string {
  return [
    row.purpose && row.purpose !== "chat" && row.purpose,
    policyText(row),
    row.served_by,
    row.lora && `adapted by ${row.lora}`,
    row.mmproj && `sees images by ${row.mmproj}`,
    row.draft && `drafted by ${row.draft}`,
    ...serveText(row),
  ].filter(Boolean).join(" · ");
}

/** How a model is computed; a change is a swap, so no request is dropped. */
function Options({ row, onClose }: { row: DeploymentView; onClose: () => void }) {
  const problem = useSignal("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const wanted = { ...policyOf(form, row), ...serveOf(form, row) };
    problem.value = await told(() => patch(pathOf(row), wanted));
    if (!problem.value) onClose();
  };
  return (
    <Dialog title={`Options of ${row.model}`} onClose={onClose}>
      <Problem text={problem.value} />
      <form onSubmit={submit}>
        <ServeFields of={row} />
        <PolicyFields of={row} />
        <p class="hint">The model is swapped as for another context: no request is dropped. What does not start is taken back.</p>
        <button type="submit" class="primary">Change</button>
      </form>
    </Dialog>
  );
}

/** A server's log, scrolled to its newest line unless the user has scrolled up. */
function Log({ row, onClose }: { row: DeploymentView; onClose: () => void }) {
  const { value, problem } = useFetched(() => get<{ data: string[] }>(pathOf(row, "/logs")), [row.id], LOG_MS);
  const element = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    if (follows.current && element.current) element.current.scrollTop = element.current.scrollHeight;
  }, [value]);
  const note = ({ currentTarget: at }: { currentTarget: HTMLPreElement }) => (follows.current = at.scrollTop + at.clientHeight > at.scrollHeight - 20);
  return (
    <Dialog title={`Log of ${row.model}`} onClose={onClose}>
      <Problem text={problem} />
      <pre class="log" tabIndex={0} aria-label={`Log of ${row.model}`} ref={element} onScroll={note}>
        {value === null ? "Asking the node …" : value.data.join("\n") || "It printed nothing yet."}
      </pre>
    </Dialog>
  );
}

function Progress({ row }: { row: DeploymentView }) {
  const at = row.progress;
  if (!at || row.state !== "downloading") return null;
  const share = at.total_bytes ? Math.floor((100 * at.done_bytes) / at.total_bytes) : 0;
  return (
    <div class="progress">
      <progress max={at.total_bytes || 1} value={at.done_bytes} aria-label={`Download of ${row.model}`} />
      <span class="muted small-text num">
        {share} % of {bytes(at.total_bytes)} · {bytes(at.rate_bps)}/s{at.eta_s !== null && ` · ${span(at.eta_s)} left`}
      </span>
    </div>
  );
}

function Context(props: { row: DeploymentView; onChange: (wanted: { context: number; slots: number }) => void }) {
  const { row } = props;
  const submit = (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    props.onChange({ context: Number(form.get("context")), slots: Number(form.get("slots")) });
  };
  const served = row.context_served;
  return (
    <form class="line swap" onSubmit={submit} key={`${row.context} ${row.slots}`}>
      <input class="narrow" name="context" type="number" required min={MIN_CONTEXT} step={row.context % MIN_CONTEXT ? 1 : MIN_CONTEXT} defaultValue={String(row.context)} aria-label={`Context of ${row.model}`} />
      <span class="muted">×</span>
      <input class="narrower" name="slots" type="number" required min={1} max={256} defaultValue={String(row.slots)} aria-label={`Slots of ${row.model}`} />
      <button type="submit" class="small" aria-label={`Swap the context of ${row.model}`}>Swap</button>
      {served !== null && <span class="muted small-text num">{count(served)} {served === row.context ? "served" : "still served"}</span>}
    </form>
  );
}
