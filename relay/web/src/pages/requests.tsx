// The requests: those that run, with a button to cancel each, and those that are over; why each went to its node.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, remove } from "../api";
import { count, date, ms, rate } from "../format";
import type { ExplainedAttempt, Explanation, RequestRow } from "../generated/api";
import { relayNow, requests, tokens } from "../live";
import { Badge, Choice, Dialog, Empty, Name, Page, Problem, Sure, paged, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";
import { remember } from "../route";
import { CaptureNotice, Captured } from "./captured";
import { OverRequests } from "./over";

const SHOWN = 25; // as many rows as a busy machine lays out within a frame, twice a second

const SHOWN_FIRST = [["running", "Running"], ["over", "Over"]];

export function RequestsPage() {
  const shown = useSignal(new URLSearchParams(location.search).has("over") ? "over" : "running");
  const asked = useSignal(new URLSearchParams(location.search).get("id"));
  const choose = (name: string) => {
    shown.value = name;
    remember(name === "over" ? { over: "" } : {});
  };
  const ask = (id: string | null) => {
    asked.value = id;
    remember({ ...Object.fromEntries(new URLSearchParams(location.search)), id: id ?? "" });
  };
  return (
    <Page title="Requests" hint={shown.value === "over" ? "The latest first" : "Oldest first, updated twice a second"} actions={<Choice label="Requests that are" options={SHOWN_FIRST} value={shown.value} onChoose={choose} />}>
      <CaptureNotice />
      {shown.value === "over" ? <OverRequests onWhy={ask} /> : <RunningRequests onWhy={ask} />}
      {asked.value && <Why key={asked.value} id={asked.value} onClose={() => ask(null)} />}
    </Page>
  );
}

function RunningRequests(props: { onWhy: (id: string) => void }) {
  const problem = useSignal("");
  const at = useSignal(0);
  const second = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => second.value++, 1000);
    return () => clearInterval(timer);
  }, []);
  second.value; // ages grow while nothing else changes
  const page = paged([...requests.value.values()], at, SHOWN, "requests");
  const end = async (id: string) => (problem.value = await told(() => remove(`/requests/${id}`)));
  return (
    <>
      <Problem text={problem.value} />
      {page.shown.length === 0 ? (
        <Empty title="Nothing runs now">Requests show up here the moment they arrive.</Empty>
      ) : (
        <div class="card scroll">
          <table class="stack dense">
            <thead>
              <tr>
                <th>State</th><th>Key</th><th>Model</th><th>Node</th><th>Reason</th>
                <th class="num">Queue</th><th class="num">First token</th><th class="num">Tokens</th><th class="num">Tokens/s</th><th class="num">Age</th>
                <th><span class="unseen">Actions</span></th>
              </tr>
            </thead>
            <tbody>
              {page.shown.map((row) => (
                <Row key={row.id} row={row} made={tokens.value.get(row.id) ?? 0} onWhy={() => props.onWhy(row.id)} onEnd={() => end(row.id)} />
              ))}
            </tbody>
          </table>
          {page.turn}
        </div>
      )}
    </>
  );
}

function Row({ row, made, onWhy, onEnd }: { row: RequestRow; made: number; onWhy: () => void; onEnd: () => void }) {
  const age = Math.max(0, relayNow() - row.started_at);
  const decode = row.ttft_ms === null ? 0 : age - row.ttft_ms / 1000;
  return (
    <tr>
      <td data-label="State"><Badge state={row.state} /></td>
      <td data-label="Key" class="nowrap"><Name text={row.key_name || "–"} most={18} /></td>
      <td data-label="Model" class="long nowrap"><Name text={row.model || "–"} most={26} /></td>
      <td data-label="Node" class="nowrap"><Name text={row.node || "–"} most={18} />{row.relay && <span class="muted"> by <Name text={row.relay} most={14} /></span>}</td>
      <td data-label="Reason">
        <button type="button" class="why" onClick={onWhy} aria-label={`Why ${row.node || "it waits"}: ${row.reason || "not placed yet"}`}>{row.reason || "why?"}</button>
      </td>
      <td data-label="Queue" class="num">{ms(row.state === "queued" ? age * 1000 : row.queue_ms)}</td>
      <td data-label="First token" class="num">{ms(row.ttft_ms)}</td>
      <td data-label="Tokens" class="num">{count(made)}</td>
      <td data-label="Tokens/s" class="num">{decode > 0.2 && made > 1 ? rate(made / decode) : "–"}</td>
      <td data-label="Age" class="num">{age.toFixed(0)} s</td>
      <td class="row-actions"><Sure label="Cancel" question="End it?" name={`the request of ${row.key_name || row.id}`} onSure={onEnd} /></td>
    </tr>
  );
}

/** A considered node: its expected times by parts, in seconds, or why it was excluded. */
interface Candidate {
  node: string;
  free?: number;
  warm_tokens?: number;
  load_s?: number;
  wait_s?: number;
  prefill_s?: number;
  rtt_s?: number;
  generation_s?: number;
  failure_s?: number;
  cost_s?: number;
  excluded?: string;
}

const UNCOUNTED = 100_000; // a provider's slots are not counted: it reports a million
const seconds = (value: number | undefined) => ms(value === undefined ? null : value * 1000);

/** How a request went: its outcome, times and tokens, a line each. */
function Story({ of }: { of: Explanation }) {
  const status = of.running ? "runs now" : `${of.status}${of.cancelled ? ", cancelled" : ""}${of.fault ? `, ${of.fault}` : ""}`;
  const about = of.tokens_exact ? "" : "about ";
  const rows: [string, string][] = [
    ["Began", date(of.started_at)],
    ["Path", of.path],
    ["Model", of.served_model && of.served_model !== of.model ? `${of.model}, served by ${of.served_model}` : of.model || "–"],
    ["Node", of.node ? `${of.node} (${of.reason || "no reason kept"})` : "–"],
    ...(of.relay ? [["Relay", of.relay] as [string, string]] : []),
    ["Status", status],
    ["Times", `queue ${ms(of.queue_ms)}, first token ${ms(of.ttft_ms)}, in all ${ms(of.duration_ms)}, ${rate(of.tokens_per_s)} tokens/s`],
    ["Tokens", `${about}${count(of.prompt_tokens)} of prompt (${count(of.cached_tokens)} cached), ${count(of.completion_tokens)} of answer`],
  ];
  return (
    <dl class="story">
      {rows.map(([name, text]) => (
        <div key={name}><dt>{name}</dt><dd class={name === "Status" && (of.fault || of.status >= 400) ? "bad" : undefined}>{text}</dd></div>
      ))}
    </dl>
  );
}

/** The load that an attempt waited for, or is expected to; "" for none. */
function loadText(attempt: ExplainedAttempt): string {
  const load = attempt.load;
  if (load) return `Loaded the model first, in ${ms(load.load_ms)}${load.made_room.length ? `, after ${load.made_room.join(" and ")} had made room (${ms(load.room_ms)})` : ""}.`;
  const chosen = (attempt.candidates as unknown as Candidate[]).find((one) => one.node === attempt.node);
  return chosen?.load_s ? `Loads the model first, about ${seconds(chosen.load_s)}.` : "";
}

/** The considered nodes, with the figures that decided. */
function Why(props: { id: string; onClose: () => void }) {
  const { value: found, problem } = useFetched(() => get<Explanation>(`/requests/${encodeURIComponent(props.id)}/explain`), [props.id]);
  return (
    <Dialog title={`Request ${props.id}`} wide onClose={props.onClose}>
      <Problem text={problem} />
      {found && <Story of={found} />}
      {found?.captured && <Captured id={props.id} />}
      {found?.running && found.attempts.length === 0 && <Empty title="It still waits for a node" />}
      {found?.attempts.map((attempt, index) => (
        <section key={index} class="scroll">
          <h3>
            {attempt.node || "No node yet"}: {attempt.reason || "waiting"}
            {attempt.fault && <span class="bad"> · {attempt.fault}</span>}
          </h3>
          {loadText(attempt) && <p class="hint">{loadText(attempt)}</p>}
          {attempt.candidates.length > 0 && (
            <table>
              <thead>
                <tr>
                  <th>Node</th><th class="num">Free slots</th><th class="num">Warm tokens</th>
                  <th class="num">Load</th><th class="num">Wait</th><th class="num">Read prompt</th><th class="num">Network</th><th class="num">First token</th>
                  <th class="num">Generate</th><th class="num">Risk of failure</th><th class="num">Cost</th>
                </tr>
              </thead>
              <tbody>
                {(attempt.candidates as unknown as Candidate[]).map((one) => (
                  <tr key={one.node}>
                    <td class="long">{one.node === attempt.node ? <strong>{one.node}</strong> : one.node}</td>
                    <td class="num">{count((one.free ?? UNCOUNTED) < UNCOUNTED ? one.free : null)}</td>
                    <td class="num">{count(one.warm_tokens)}</td>
                    <td class="num">{one.load_s ? seconds(one.load_s) : "–"}</td>
                    <td class="num">{seconds(one.wait_s)}</td>
                    <td class="num">{seconds(one.prefill_s)}</td>
                    <td class="num">{seconds(one.rtt_s)}</td>
                    <td class="num">{one.excluded || seconds((one.load_s ?? 0) + (one.wait_s ?? 0) + (one.prefill_s ?? 0) + (one.rtt_s ?? 0))}</td>
                    <td class="num">{seconds(one.generation_s)}</td>
                    <td class="num">{seconds(one.failure_s)}</td>
                    <td class="num">{one.excluded ? "–" : seconds(one.cost_s)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )}
        </section>
      ))}
      {found?.attempts.some((attempt) => attempt.candidates.length > 0) && (
        <p class="hint below">The lowest cost is chosen: the time to the first token, the time to generate by its weight, the risk of failure, and what others lose.</p>
      )}
      <p class="hint below">The same in a terminal: <code>wai explain {props.id}</code></p>
    </Dialog>
  );
}
