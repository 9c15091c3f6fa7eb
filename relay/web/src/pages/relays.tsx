// The relays that share this one's database; nothing where it is alone.

import { useSignal } from "@preact/signals";
import { get, post } from "../api";
import { date } from "../format";
import type { RelayView } from "../generated/api";
import { Badge, Name, Problem, Sure, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";

export function Relays() {
  const { value: found, problem: unread, again } = useFetched(() => get<{ data: RelayView[] }>("/relays"));
  const problem = useSignal("");
  const act = async (relay: RelayView, action: string) => {
    problem.value = await told(() => post(`/relays/${encodeURIComponent(relay.id)}/${action}`, {}));
    again();
  };
  const relays = found?.data ?? [];
  if (relays.length < 2) return null;
  return (
    <section class="card">
      <h2>Relays</h2>
      <p class="muted">They share a database, and with it nodes, keys and usage. A drained one sends callers to the others.</p>
      <div class="scroll">
        <table class="stack dense">
          <thead><tr><th>Relay</th><th>State</th><th>Address for nodes</th><th>Version</th><th>Since</th><th><span class="unseen">Actions</span></th></tr></thead>
          <tbody>
            {relays.map((relay) => (
              <tr key={relay.id}>
                <td data-label="Relay" class="long">
                  <strong><Name text={relay.name} most={26} /></strong>
                  {relay.this && <span class="muted"> (this one)</span>}
                </td>
                <td data-label="State"><Badge state={relay.state} /></td>
                <td data-label="Address for nodes" class="muted long"><Name text={relay.url} most={40} /></td>
                <td data-label="Version" class="muted">{relay.version}</td>
                <td data-label="Since" class="muted">{date(relay.started_at)}</td>
                <td class="row-actions">
                  {relay.state === "lost" ? null : relay.state === "drained" ? (
                    <button type="button" class="small" onClick={() => void act(relay, "undrain")} aria-label={`Undrain ${relay.name}`}>Undrain</button>
                  ) : (
                    <Sure label="Drain" question="Send callers elsewhere?" name={relay.name} onSure={() => void act(relay, "drain")} />
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Problem text={problem.value || unread} />
    </section>
  );
}
