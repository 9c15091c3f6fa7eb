// A small streaming chat that uses an API key, as an app does, and snippets for apps.

import { computed, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { post } from "../api";
import { ms } from "../format";
import { nodes } from "../live";
import { Page, Problem, told } from "../parts/basics";
import { SnippetBox } from "../parts/snippet_box";
import { baseUrl } from "../session";

interface Message {
  role: "user" | "assistant";
  content: string;
  /** The reasoning text before the answer. */
  thought: string;
  /** Which node answered, and how fast. */
  note: string;
}

interface Piece {
  content?: string | null;
  reasoning_content?: string | null;
  reasoning?: string | null;
}

// State lives here, not in the page, so that an answer continues while other pages are shown.
const key = signal("");
const model = signal("");
const text = signal("");
const talk = signal<Message[]>([]);
const problem = signal("");
const busy = signal(false);
const models = computed(() => [...new Set([...nodes.value.values()].flatMap((node) => node.models))].sort());
let running: AbortController | null = null;

/** Clear the chat for the next sign-in. */
export function forgetTalk(): void {
  running?.abort();
  running = null;
  busy.value = false;
  for (const kept of [key, model, text, problem]) kept.value = "";
  talk.value = [];
}

async function send(event: Event): Promise<void> {
  event.preventDefault();
  if (!text.value.trim() || busy.value) return;
  const asked: Message[] = [...talk.value.filter((message) => message.content), message("user", text.value)];
  talk.value = [...asked, message("assistant", "")];
  text.value = "";
  problem.value = "";
  busy.value = true;
  const controller = (running = new AbortController());
  const said = await told(async () => {
    try {
      const began = performance.now();
      const response = await ask(key.value, chosen(), asked, controller.signal);
      const node = response.headers.get("x-wai-node");
      let first = 0;
      for await (const { content, reasoning_content, reasoning } of pieces(response)) {
        if (controller.signal.aborted) return;
        first ||= performance.now() - began;
        const last = talk.value.at(-1)!;
        const answer = {
          ...last,
          content: last.content + (content ?? ""),
          thought: last.thought + (reasoning_content ?? reasoning ?? ""),
          note: [node, `first token ${ms(first)}`, `${ms(performance.now() - began)} in all`].filter(Boolean).join(" · "),
        };
        talk.value = [...talk.value.slice(0, -1), answer];
      }
    } catch (error) {
      if (!controller.signal.aborted) throw error;
    }
  });
  // After a sign-out the chat is cleared; a late answer must not reappear.
  if (running !== controller) return;
  const last = talk.value.at(-1);
  if (last && !last.content && !last.thought) talk.value = talk.value.slice(0, -1);
  problem.value = said;
  busy.value = false;
}

const message = (role: Message["role"], content: string): Message => ({ role, content, thought: "", note: "" });

const chosen = () => (models.value.includes(model.value) ? model.value : (models.value[0] ?? ""));

export function TryPage() {
  const makeKey = async () => {
    problem.value = await told(async () => (key.value = (await post<{ key: string }>("/keys", { name: "try-it" })).key));
  };
  const end = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (end.current) end.current.scrollTop = end.current.scrollHeight;
  }, [talk.value]);
  return (
    <Page title="Try it" hint="As an app would: with an API key, over the public address">
      <div class="try">
        <section class="card chat">
          <div class="line wrap">
            <label class="grow">
              API key
              <input type="password" autocomplete="off" value={key} placeholder="wai_sk_…" onInput={(event) => (key.value = event.currentTarget.value.trim())} />
            </label>
            <button type="button" onClick={makeKey} disabled={!!key.value}>Create one</button>
            <label>
              Model
              <select aria-label="Model" value={chosen()} disabled={!models.value.length} onChange={(event) => (model.value = event.currentTarget.value)}>
                {!models.value.length && <option value="">none is served now</option>}
                {models.value.map((id) => <option key={id} value={id}>{id}</option>)}
              </select>
            </label>
          </div>
          <div class="talk" role="log" aria-live="polite" aria-busy={busy.value} aria-label="Chat" tabIndex={0} ref={end}>
            {talk.value.length === 0 && <p class="hint">{hint()}</p>}
            {talk.value.map((said, index) => (
              <div key={index} class={said.role}>
                {said.thought && <p class="hint">{said.thought}</p>}
                {(said.content || !said.thought) && <p>{said.content || "…"}</p>}
                {said.note && <p class="note">{said.note}</p>}
              </div>
            ))}
          </div>
          <Problem text={problem.value} />
          <form class="line" onSubmit={send}>
            <input class="grow" value={text} placeholder="Message" aria-label="Message" onInput={(event) => (text.value = event.currentTarget.value)} />
            {busy.value ? (
              <button type="button" onClick={() => running?.abort()}>Stop</button>
            ) : (
              <button type="submit" class="primary" disabled={!key.value || !chosen()}>Send</button>
            )}
          </form>
        </section>
        <section class="card">
          <h2>In your app</h2>
          <SnippetBox secret={key.value} model={chosen()} />
        </section>
      </div>
    </Page>
  );
}

function hint(): string {
  if (!chosen()) return "No model is served now: add a node that has one, or deploy one on the Models page.";
  if (!key.value) return "An API key first: paste one, or create one here.";
  return `Say something to ${chosen()}.`;
}

async function ask(key: string, model: string, talk: Message[], signal: AbortSignal): Promise<Response> {
  const messages = talk.map(({ role, content }) => ({ role, content }));
  const response = await fetch(`${baseUrl}/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    credentials: "omit",
    body: JSON.stringify({ model, messages, stream: true }),
    signal,
  });
  if (!response.ok || !response.body) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `The relay answered ${response.status}.`);
  }
  return response;
}

/** Yield the new parts of the answer as they arrive. */
async function* pieces(response: Response): AsyncGenerator<Piece> {
  let rest = "";
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data: ") || line.startsWith("data: [DONE]")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const piece: Piece | undefined = event.choices?.[0]?.delta;
      if (piece?.content || piece?.reasoning_content || piece?.reasoning) yield piece;
    }
  }
}
