// What runs at this moment, and a way to end it.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { remove } from "../api";
import { count, ms, rate } from "../format";
import { relayNow, requests, tokens } from "../live";
import { Badge, Empty, Page, Problem, Sure, told } from "../parts/basics";

const SHOWN = 200; // rows that a browser lays out in a few milliseconds; the rest is a number

export function RequestsPage() {
  const problem = useSignal("");
  const tick = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => tick.value++, 1000);
    return () => clearInterval(timer);
  }, []);
  const all = [...requests.value.values()];
  const now = relayNow() + tick.value * 0;
  const end = async (id: string) => (problem.value = await told(() => remove(`/requests/${id}`)));
  return (
    <Page title="Live requests" hint={all.length > SHOWN ? `the ${SHOWN} oldest of ${all.length}` : "updated twice a second"}>
      <Problem text={problem.value} />
      {all.length === 0 ? (
        <Empty title="Nothing runs now">Requests show up here the moment they arrive.</Empty>
      ) : (
        <div class="card scroll">
          <table>
            <thead>
              <tr>
                <th>State</th><th>Key</th><th>Model</th><th>Node</th><th>Reason</th>
                <th class="num">Queue</th><th class="num">First token</th><th class="num">Tokens</th><th class="num">Tokens/s</th><th class="num">Age</th><th />
              </tr>
            </thead>
            <tbody>
              {all.slice(0, SHOWN).map((row) => {
                const made = tokens.value.get(row.id) ?? 0;
                const age = Math.max(0, now - row.started_at);
                const decode = row.ttft_ms === null ? 0 : age - row.ttft_ms / 1000;
                return (
                  <tr key={row.id}>
                    <td><Badge state={row.state} /></td>
                    <td>{row.key_name || "–"}</td>
                    <td>{row.model || "–"}</td>
                    <td>{row.node || "–"}</td>
                    <td class="muted">{row.reason}</td>
                    <td class="num">{ms(row.queue_ms)}</td>
                    <td class="num">{ms(row.ttft_ms)}</td>
                    <td class="num">{count(made)}</td>
                    <td class="num">{decode > 0.2 && made > 1 ? rate(made / decode) : "–"}</td>
                    <td class="num">{age.toFixed(0)} s</td>
                    <td><Sure label="Cancel" question="End it?" name={row.id} onSure={() => end(row.id)} /></td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </Page>
  );
}
