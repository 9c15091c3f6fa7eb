// Settings that can be changed while the relay runs, admins, sign-ins, and the audit log.

import { useSignal } from "@preact/signals";
import { get, patch, post, remove } from "../api";
import { date } from "../format";
import type { AdminView, SettingsView, SignInEntry } from "../generated/api";
import { differing } from "../limits";
import { Code, Page, Problem, Sure, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";
import { session } from "../session";
import { AuditLog } from "./audit";
import { Relays } from "./relays";

const HOUR_S = 3600;

export function SettingsPage() {
  return (
    <Page title="Settings">
      <Relay />
      <Relays />
      <Admins />
      <SignIns />
      <AuditLog />
    </Page>
  );
}

function Relay() {
  const { value, problem: unread } = useFetched(() => get<SettingsView>("/settings"));
  const problem = useSignal("");
  const saved = useSignal(false);
  const save = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const wanted: SettingsView = {
      public_url: String(form.get("url")).trim() || null,
      invite_ttl_s: Number(form.get("hours")) * HOUR_S,
      usage_retention_days: Number(form.get("days")),
    };
    problem.value = await told(() => patch("/settings", differing(wanted, value!)));
    saved.value = !problem.value;
  };
  return (
    <section class="card">
      <h2>Relay</h2>
      {value && (
        <form onSubmit={save} onInput={() => (saved.value = false)} key={JSON.stringify(value)}>
          <div class="grid three">
            <label>
              Public address
              <input name="url" type="url" placeholder={session.value?.url ?? ""} defaultValue={value.public_url ?? ""} />
              <span class="hint">What invites tell nodes to dial. Empty: as the relay was started.</span>
            </label>
            <label>
              Invites are good for, in hours
              <input name="hours" type="number" required min={0.1} step="any" defaultValue={String(+(value.invite_ttl_s / HOUR_S).toFixed(3))} />
              <span class="hint">Each is for one node, once.</span>
            </label>
            <label>
              Keep each request’s cost, in days
              <input name="days" type="number" required min={0.1} step="any" defaultValue={String(value.usage_retention_days)} />
              <span class="hint">Sums by hour and day stay longer.</span>
            </label>
          </div>
          <div class="line"><button type="submit">Save</button><span class="good" role="status">{saved.value && "Saved"}</span></div>
        </form>
      )}
      <Problem text={problem.value || unread} />
    </section>
  );
}

function SignIns() {
  const { value: found, problem: unread } = useFetched(() => get<{ data: SignInEntry[] }>("/sign-ins"));
  const signIns = found?.data ?? [];
  const problem = useSignal("");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  const own = session.value?.id ?? "";
  return (
    <section class="card">
      <h2>Browsers that are signed in</h2>
      <div class="scroll">
        <table class="stack dense">
          <thead><tr><th>Admin</th><th>Browser</th><th>From</th><th>Since</th><th>Last used</th><th><span class="unseen">Actions</span></th></tr></thead>
          <tbody>
            {signIns.map((one) => (
              <tr key={one.id}>
                <td data-label="Admin" class="long">
                  <strong>{one.admin}</strong>
                  {one.id === own && <span class="muted"> (this browser)</span>}
                </td>
                <td data-label="Browser" class="muted long">{one.user_agent || "–"}</td>
                <td data-label="From" class="muted">{one.address || "–"}</td>
                <td data-label="Since" class="muted">{date(one.created_at)}</td>
                <td data-label="Last used" class="muted">{date(one.used_at)}</td>
                <td class="row-actions">
                  {one.id !== own && (
                    <Sure label="Sign out" question="Sign it out?" name={`${one.admin}, ${one.id}`} onSure={() => void act(() => remove(`/sign-ins/${encodeURIComponent(one.id)}`))} />
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {signIns.length > 1 && (
        <div class="line">
          <Sure label="Sign out all others" question="Sign out every other browser?" name="all others" onSure={() => void act(() => remove(`/sign-ins?but=${encodeURIComponent(own)}`))} />
        </div>
      )}
      <Problem text={problem.value || unread} />
    </section>
  );
}

function Admins() {
  const { value: found, problem: unread } = useFetched(() => get<{ data: AdminView[] }>("/admins"));
  const token = useSignal("");
  const problem = useSignal("");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  const add = (event: Event) => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const name = String(new FormData(form).get("name")).trim();
    void act(async () => {
      token.value = (await post<{ token: string }>("/admins", { name })).token;
      form.reset();
    });
  };
  return (
    <section class="card">
      <h2>Admins</h2>
      <table>
        <thead><tr><th>Name</th><th>Since</th><th><span class="unseen">Actions</span></th></tr></thead>
        <tbody>
          {(found?.data ?? []).map((admin) => (
            <tr key={admin.name}>
              <td class="long">
                <strong>{admin.name}</strong>
                {admin.name === session.value?.name && <span class="muted"> (you)</span>}
              </td>
              <td class="muted">{date(admin.created_at)}</td>
              <td class="row-actions">
                {admin.name !== "local" && !(admin.name.startsWith("local@") && admin.name === session.value?.name) && (
                  <Sure label="Revoke" question="Revoke the token?" name={admin.name} onSure={() => void act(() => remove(`/admins/${encodeURIComponent(admin.name)}`))} />
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <form class="line" onSubmit={add}>
        <input name="name" required maxLength={64} placeholder="name" aria-label="Name of the new admin" />
        <button type="submit">Add an admin</button>
      </form>
      <Problem text={problem.value || unread} />
      {token.value && <Code text={token.value} label="admin token, shown this once" />}
    </section>
  );
}
