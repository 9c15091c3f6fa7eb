// Invites: create one and see its node join; list the unused ones.

import { useSignal } from "@preact/signals";
import { get, post, remove } from "../api";
import { date } from "../format";
import type { CreatedInvite, InviteView } from "../generated/api";
import { nodes } from "../live";
import { Code, Dialog, Problem, Sure, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";

export function AddNode(props: { onClose: () => void }) {
  const command = useSignal("");
  const expires = useSignal(0);
  const problem = useSignal("");
  const before = useSignal(new Set(nodes.value.keys()));
  const arrived = [...nodes.value.values()].find((node) => !before.value.has(node.id));
  const create = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const name = String(form.get("name")).trim();
    problem.value = await told(async () => {
      const body = { ...(name && { name }), may_deploy: form.has("may_deploy") };
      const made = await post<CreatedInvite>("/invites", body);
      [command.value, expires.value] = [made.command, made.expires_at];
      before.value = new Set(nodes.value.keys());
    });
  };
  return (
    <Dialog title="Add a node" onClose={props.onClose}>
      {!command.value ? (
        <form onSubmit={create}>
          <label>
            <span>Name <span class="muted">(optional)</span></span>
            <input name="name" maxLength={63} placeholder="gpu-box" autofocus />
          </label>
          <label class="check"><input name="may_deploy" type="checkbox" defaultChecked />Models may be deployed to it from here</label>
          <Problem text={problem.value} />
          <button type="submit" class="primary">Make the command</button>
        </form>
      ) : (
        <>
          <p>Run this on the GPU box: it installs wai, joins and starts it.</p>
          <Code text={command.value} label="command" />
          <p class="hint below">Good for one node, until {date(expires.value)}, and shown this once.</p>
          <p class={arrived ? "waiting arrived" : "waiting"} role="status">
            {arrived ? `${arrived.name} has arrived: ${arrived.state}` : "Waiting for it to arrive …"}
          </p>
        </>
      )}
    </Dialog>
  );
}

/** The invites that are still valid. */
export function OpenInvites() {
  const { value: found, problem: unread } = useFetched(() => get<{ data: InviteView[] }>("/invites"), [nodes.value.size]);
  const invites = (found?.data ?? []).filter((invite) => invite.state === "open").reverse();
  const problem = useSignal("");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  return (
    <>
      <Problem text={problem.value || unread} />
      {invites.length > 0 && (
        <section class="card">
          <h2>Open invites</h2>
          <table class="stack">
            <thead><tr><th>For</th><th>Good until</th><th>Deployments</th><th><span class="unseen">Actions</span></th></tr></thead>
            <tbody>
              {invites.map((invite) => (
                <tr key={invite.id}>
                  <td data-label="For" class="long">{invite.name ?? <span class="muted">any name · {invite.id}</span>}</td>
                  <td data-label="Good until" class="muted nowrap">{date(invite.expires_at)}</td>
                  <td data-label="Deployments" class="muted">{invite.may_deploy ? "allowed" : "not allowed"}</td>
                  <td class="row-actions">
                    <Sure label="Revoke" question="Make it worthless?" name={`the invite of ${invite.name ?? invite.id}`} onSure={() => void act(() => remove(`/invites/${invite.id}`))} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      )}
    </>
  );
}
