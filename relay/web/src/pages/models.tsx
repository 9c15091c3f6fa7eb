// Models: search the hub, see what fits where, deploy; what is deployed, its context, its log.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, patch, post, remove } from "../api";
import { bytes, compact, span } from "../format";
import { nodes } from "../live";
import { Badge, Dialog, Empty, Page, Problem, Sure, told } from "../parts/basics";

const LOOK_MS = 1500; // downloads move; the nodes are asked each time
const MIN_CONTEXT = 256;

interface Deployment {
  node: string;
  model: string;
  state: string;
  reason: string;
  swap_error: string;
  context: number;
  context_served: number | null;
  slots: number;
  size_bytes: number;
  in_flight: number;
  progress: { done_bytes: number; total_bytes: number; rate_bps: number; eta_s: number | null } | null;
}

interface Found {
  repo: string;
  downloads: number;
  likes: number;
  gated: boolean;
}

interface NodeFit {
  node: string;
  error: string | null;
  quants: { quant: string; size_bytes: number; verdict: string; largest_context: number; high_bytes: number; reason: string }[];
}

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
      {chosen.value && <Fits repo={chosen.value} onClose={() => (chosen.value = null)} />}
    </Page>
  );
}

function Deployed() {
  const rows = useSignal<Deployment[] | null>(null);
  const problem = useSignal("");
  const log = useSignal<{ title: string; lines: string[] } | null>(null);
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  useEffect(() => {
    let over = false;
    let timer: ReturnType<typeof setTimeout>;
    const look = async () => {
      const said = await told(async () => (rows.value = (await get<{ data: Deployment[] }>("/deployments")).data));
      if (said) problem.value = said;
      if (!over) timer = setTimeout(look, LOOK_MS);
    };
    void look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, []);
  const path = (row: Deployment, rest = "") => `/deployments/${encodeURIComponent(row.node)}${rest}?model=${encodeURIComponent(row.model)}`;
  const showLog = (row: Deployment) =>
    act(async () => (log.value = { title: row.model, lines: (await get<{ data: string[] }>(path(row, "/logs"))).data }));
  return (
    <section class="card scroll">
      <h2>Deployed</h2>
      <Problem text={problem.value} />
      {!rows.value?.length ? (
        <Empty title="Nothing is deployed yet">Models that your own servers hold are on the Nodes page.</Empty>
      ) : (
        <table>
          <thead><tr><th>Model</th><th>Node</th><th>State</th><th class="num">Size</th><th>Context × slots</th><th /></tr></thead>
          <tbody>
            {rows.value.map((row) => (
              <tr key={`${row.node} ${row.model}`}>
                <td>
                  <strong>{row.model}</strong>
                  {(row.reason || row.swap_error) && <div class="bad small-text">{row.reason || row.swap_error}</div>}
                </td>
                <td>{row.node}</td>
                <td><Badge state={row.state} /><Progress row={row} /></td>
                <td class="num">{bytes(row.size_bytes)}</td>
                <td><Context row={row} onChange={(context) => act(() => patch(path(row), { context }))} /></td>
                <td class="row-actions">
                  <button type="button" class="small" onClick={() => showLog(row)} aria-label={`Log of ${row.model}`}>Log</button>
                  <Sure label="Remove" question="Delete its files?" name={row.model} onSure={() => act(() => remove(path(row)))} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {log.value && (
        <Dialog title={log.value.title} onClose={() => (log.value = null)}>
          <pre class="log" tabIndex={0}>{log.value.lines.join("\n") || "It printed nothing yet."}</pre>
        </Dialog>
      )}
    </section>
  );
}

function Progress({ row }: { row: Deployment }) {
  const at = row.progress;
  if (!at || row.state !== "downloading") return null;
  return (
    <div class="progress">
      <progress max={at.total_bytes} value={at.done_bytes} aria-label={`Download of ${row.model}`} />
      <span class="muted small-text">{bytes(at.rate_bps)}/s{at.eta_s !== null && ` · ${span(at.eta_s)} left`}</span>
    </div>
  );
}

function Context(props: { row: Deployment; onChange: (context: number) => void }) {
  const submit = (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    props.onChange(Number(form.get("context")));
  };
  return (
    <form class="line" onSubmit={submit}>
      <input class="narrow" name="context" type="number" min={MIN_CONTEXT} step={256} defaultValue={String(props.row.context)} aria-label={`Context of ${props.row.model}`} />
      <span class="muted">× {props.row.slots}</span>
      <button type="submit" class="small">Swap</button>
    </form>
  );
}

function Search(props: { onChoose: (repo: string) => void }) {
  const found = useSignal<Found[] | null>(null);
  const busy = useSignal(false);
  const problem = useSignal("");
  const search = async (event: Event) => {
    event.preventDefault();
    const words = String(new FormData(event.currentTarget as HTMLFormElement).get("q"));
    busy.value = true;
    problem.value = await told(async () => (found.value = (await get<{ data: Found[] }>(`/models/search?q=${encodeURIComponent(words)}`)).data));
    busy.value = false;
  };
  return (
    <>
      <form class="line" role="search" onSubmit={search}>
        <input name="q" type="search" required placeholder="qwen 4b, gemma, llama …" aria-label="Search models" />
        <button type="submit" class="primary" disabled={busy.value}>{busy.value ? "Searching …" : "Search"}</button>
      </form>
      <Problem text={problem.value} />
      {found.value?.length === 0 && <Empty title="Nothing was found" />}
      {!!found.value?.length && (
        <ul class="results">
          {found.value.map((model) => (
            <li key={model.repo}>
              <button type="button" class="plain" onClick={() => props.onChoose(model.repo)}>{model.repo}</button>
              {model.gated && <Badge state="gated" />}
              <span class="muted num">{compact(model.downloads)} downloads · {compact(model.likes)} likes</span>
            </li>
          ))}
        </ul>
      )}
    </>
  );
}

const VERDICTS: Record<string, string> = { gpu: "fits the GPU", partial: "partly in RAM", cpu: "on the CPU", no: "does not fit" };

function Fits(props: { repo: string; onClose: () => void }) {
  const fits = useSignal<NodeFit[] | null>(null);
  const problem = useSignal("");
  const context = useSignal(8192);
  useEffect(() => {
    void told(async () => (fits.value = (await get<{ data: NodeFit[] }>(`/models/fit?repo=${encodeURIComponent(props.repo)}&context=${context.value}`)).data)).then(
      (said) => (problem.value = said),
    );
  }, [context.value]);
  const deploy = async (node: string, quant: string) => {
    problem.value = await told(() => post("/deployments", { node, model: `${props.repo}:${quant}`, context: context.value }));
    if (!problem.value) props.onClose();
  };
  return (
    <Dialog title={props.repo} onClose={props.onClose}>
      <label class="line">
        Context per slot
        <select value={String(context.value)} onChange={(event) => (context.value = Number(event.currentTarget.value))}>
          {[512, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072].map((size) => <option key={size} value={size}>{compact(size)}</option>)}
        </select>
      </label>
      <Problem text={problem.value} />
      {!fits.value && !problem.value && <p class="hint">Asking the nodes …</p>}
      {fits.value?.map((fit) => (
        <section key={fit.node}>
          <h3>{fit.node}</h3>
          <Problem text={fit.error ?? ""} />
          {fit.quants.length > 0 && (
            <div class="scroll">
              <table>
                <thead><tr><th>Quantisation</th><th class="num">Size</th><th class="num">Takes</th><th>Fit</th><th /></tr></thead>
                <tbody>
                  {fit.quants.map((quant) => (
                    <tr key={quant.quant}>
                      <td><code>{quant.quant}</code></td>
                      <td class="num">{bytes(quant.size_bytes)}</td>
                      <td class="num">{bytes(quant.high_bytes)}</td>
                      <td><span class={`fit ${quant.verdict}`} title={quant.reason}>{VERDICTS[quant.verdict] ?? quant.verdict}</span></td>
                      <td><button type="button" class="small" disabled={quant.verdict === "no"} onClick={() => deploy(fit.node, quant.quant)} aria-label={`Deploy ${quant.quant} on ${fit.node}`}>Deploy</button></td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </section>
      ))}
    </Dialog>
  );
}
