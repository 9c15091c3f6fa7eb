// Deploy a model: search the hub, see what fits which node, deploy on one or on several.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, post } from "../api";
import { engine } from "../detail";
import { bytes, compact, count } from "../format";
import type { FoundModelView, NodeFit, PlacedView } from "../generated/api";
import { nodes } from "../live";
import { Badge, Dialog, Empty, Problem, told } from "../parts/basics";
import { policyOf, PolicyFields } from "../parts/policy";
import { besideOf, BesideFields, ServeFields, serveOf } from "../parts/serve";

const CONTEXTS = [512, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];
const SLOTS = [1, 2, 4, 8, 16];
const CACHE_TYPES = ["f16", "q8_0", "q4_0"] as const;

export function Search(props: { onChoose: (repo: string) => void }) {
  const found = useSignal<FoundModelView[] | null>(null);
  const busy = useSignal(false);
  const problem = useSignal("");
  const search = async (event: Event) => {
    event.preventDefault();
    const words = String(new FormData(event.currentTarget as HTMLFormElement).get("q"));
    if (words.startsWith("vllm:")) return props.onChoose(words.trim());
    busy.value = true;
    problem.value = await told(async () => (found.value = (await get<{ data: FoundModelView[] }>(`/models/search?q=${encodeURIComponent(words)}`)).data));
    busy.value = false;
  };
  return (
    <>
      <form class="line" role="search" onSubmit={search}>
        <input name="q" type="search" required placeholder="qwen, vllm:Qwen/Qwen3-8B" aria-label="Search models" />
        <button type="submit" class="primary" disabled={busy.value}>{busy.value ? "Searching …" : "Search"}</button>
      </form>
      <Problem text={problem.value} />
      {found.value?.length === 0 && <Empty title="Nothing was found">Try fewer words, or the publisher’s name.</Empty>}
      {!!found.value?.length && (
        <ul class="results">
          {found.value.map((model) => (
            <li key={model.repo}>
              <button type="button" class="plain" onClick={() => props.onChoose(model.repo)}>{model.repo}</button>
              {model.gated && <Badge state="gated" />}
              <span class="muted num">{compact(model.downloads)} {model.downloads === 1 ? "download" : "downloads"} · {compact(model.likes)} {model.likes === 1 ? "like" : "likes"}</span>
            </li>
          ))}
        </ul>
      )}
    </>
  );
}

/** Says that a node has no llama-server, and what a deployment on it does about that. */
function NoEngine({ offer }: { offer: string }) {
  return (
    <p class="hint">
      This node has no llama-server. {offer ? `Deploying installs one first: ${offer}.` : "Its owner installs one there: "}
      {!offer && <code>wai node engine install</code>}
    </p>
  );
}

const VERDICTS: Record<string, string> = { gpu: "fits the GPU", partial: "partly in RAM", cpu: "on the CPU", no: "does not fit" };

/** What of the options the fit depends on, as the rest of a query. */
function placeOf(form: FormData): string {
  const { gpu_layers, cpu_moe, gpus } = serveOf(form);
  const asked = { gpu_layers, cpu_moe, gpus: gpus?.join() };
  return Object.entries(asked).map(([name, value]) => (value === undefined || value === null || value === "" ? "" : `&${name}=${value}`)).join("");
}

export function Fits(props: { repo: string; onClose: () => void }) {
  const fits = useSignal<NodeFit[] | null>(null);
  const problem = useSignal("");
  const context = useSignal(8192);
  const slots = useSignal(2);
  const cache = useSignal<string>("f16");
  const busy = useSignal("");
  const placing = useSignal(""); // what the options say of the model's place, as a query
  const form = useRef<HTMLFormElement>(null);
  const given = () => new FormData(form.current ?? undefined);
  const placed = useSignal<PlacedView[] | null>(null);
  useEffect(() => {
    let over = false; // another choice was made meanwhile
    void told(async () => {
      const asked = `repo=${encodeURIComponent(props.repo)}&context=${context.value}&slots=${slots.value}${cache.value === "f16" ? "" : `&cache_type=${cache.value}`}${placing.value}`;
      const { data } = await get<{ data: NodeFit[] }>(`/models/fit?${asked}`);
      if (!over) fits.value = data;
    }).then((said) => over || (problem.value = said));
    return () => {
      over = true;
    };
  }, [context.value, slots.value, cache.value, placing.value]);
  const engineOf = (name: string) => engine([...nodes.value.values()].find((node) => node.name === name && !props.repo.startsWith("vllm:"))?.detail ?? {});
  const wish = (quant: string) => ({
    model: `${props.repo}:${quant}`,
    context: context.value,
    slots: slots.value,
    ...(cache.value === "f16" ? {} : { cache_type: cache.value }),
    ...policyOf(given()),
    ...serveOf(given()),
    ...besideOf(given()),
  });
  const deploySeveral = async (quant: string, replicas: number | null) => {
    busy.value = `several ${quant}`;
    const wanted = { ...wish(quant), ...(replicas ? { replicas } : {}) };
    problem.value = await told(async () => (placed.value = (await post<{ data: PlacedView[] }>("/deployments/several", wanted)).data));
    busy.value = "";
  };
  const deploy = async (node: string, quant: string) => {
    busy.value = `${node} ${quant}`;
    const wanted = { node, ...wish(quant) };
    problem.value = await told(() => post("/deployments", engineOf(node).missing ? { ...wanted, install_engine: true } : wanted));
    busy.value = "";
    if (!problem.value) props.onClose();
  };
  return (
    <Dialog title={props.repo} onClose={props.onClose}>
      <div class="choices">
        <label class="line">
          Context per slot
          <select value={String(context.value)} onChange={(event) => (context.value = Number(event.currentTarget.value))}>
            {CONTEXTS.map((size) => <option key={size} value={size}>{count(size)}</option>)}
          </select>
        </label>
        <label class="line">
          Slots
          <select value={String(slots.value)} onChange={(event) => (slots.value = Number(event.currentTarget.value))}>
            {SLOTS.map((size) => <option key={size} value={size}>{size}</option>)}
          </select>
        </label>
        <label class="line">
          Cache type
          <select value={cache.value} onChange={(event) => (cache.value = event.currentTarget.value)}>
            {CACHE_TYPES.map((type) => <option key={type} value={type}>{type}</option>)}
          </select>
        </label>
      </div>
      <form class="choices" ref={form} onSubmit={(event) => event.preventDefault()} onChange={() => (placing.value = placeOf(given()))}>
        <PolicyFields />
        {!props.repo.startsWith("vllm:") && (
          <details class="more">
            <summary>More options</summary>
            <div class="grid three">
              <ServeFields cacheType={false} />
              <BesideFields />
            </div>
          </details>
        )}
      </form>
      <Problem text={problem.value} />
      {!fits.value && !problem.value && <p class="hint" role="status">Asking the nodes …</p>}
      {fits.value?.map((fit) => (
        <section key={fit.node}>
          <h3>{fit.node}</h3>
          <Problem text={fit.error ?? ""} />
          {engineOf(fit.node).missing && <NoEngine offer={engineOf(fit.node).offer} />}
          {fit.quants.length > 0 && (
            <div class="scroll">
              <table>
                <thead><tr><th>Quantisation</th><th class="num">Size</th><th class="num">Takes</th><th class="num">Context up to</th><th>Fit</th><th><span class="unseen">Deploy</span></th></tr></thead>
                <tbody>
                  {fit.quants.map((quant) => (
                    <tr key={quant.quant}>
                      <td><code>{quant.quant}</code></td>
                      <td class="num">{bytes(quant.size_bytes)}</td>
                      <td class="num">{bytes(quant.high_bytes)}</td>
                      <td class="num">{count(quant.largest_context || null)}</td>
                      <td><span class={`fit ${quant.verdict}`} title={quant.reason}>{VERDICTS[quant.verdict] ?? quant.verdict}</span></td>
                      <td class="row-actions"><button type="button" class="small" disabled={quant.verdict === "no" || busy.value !== "" || (engineOf(fit.node).missing && !engineOf(fit.node).offer)} onClick={() => deploy(fit.node, quant.quant)} aria-label={`Deploy ${quant.quant} on ${fit.node}`}>{busy.value === `${fit.node} ${quant.quant}` ? "Deploying …" : "Deploy"}</button></td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </section>
      ))}
      {(fits.value?.length ?? 0) > 1 && (
        <Several quants={[...new Set(fits.value?.flatMap((fit) => fit.quants.map((quant) => quant.quant)))]} busy={busy.value !== ""} onDeploy={deploySeveral} />
      )}
      {placed.value && <Placed rows={placed.value} />}
    </Dialog>
  );
}

/** One deployment on several nodes: on all of them, or on so many of those that it fits best. */
function Several(props: { quants: string[]; busy: boolean; onDeploy: (quant: string, replicas: number | null) => void }) {
  const submit = (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    props.onDeploy(String(form.get("quant")), Number(form.get("replicas")) || null);
  };
  return (
    <section aria-label="On several nodes">
      <h3>On several nodes</h3>
      <form class="line" onSubmit={submit}>
        <select name="quant" aria-label="Quantisation">
          {props.quants.map((quant) => <option key={quant} value={quant}>{quant}</option>)}
        </select>
        <input class="narrow" name="replicas" type="number" min={1} max={64} placeholder="all" aria-label="Replicas" title="where it fits best" />
        <button type="submit" class="small" disabled={props.busy}>Deploy on several</button>
      </form>
    </section>
  );
}

function Placed({ rows }: { rows: PlacedView[] }) {
  return (
    <ul class="results" role="status" aria-label="What became of it">
      {rows.map((row) => (
        <li key={row.node}>
          <strong>{row.node}</strong>
          <Badge state={row.outcome.replace("_", " ")} />
          <span class="muted">{row.reason}</span>
        </li>
      ))}
    </ul>
  );
}
