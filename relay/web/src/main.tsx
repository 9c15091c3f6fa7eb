// The dashboard: sign-in, the frame around the pages, and the page that the path names.

import { signal, useSignal } from "@preact/signals";
import { type ComponentType, render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { currentSession, signIn, signOut, whenSignedOut } from "./api";
import type { SignInView } from "./generated/api";
import { clockAhead, connected, heardAt, nodes, requests, startFeed, stopFeed } from "./live";
import { KeysPage } from "./pages/keys";
import { ModelsPage } from "./pages/models";
import { NodesPage } from "./pages/nodes";
import { OverviewPage } from "./pages/overview";
import { RequestsPage } from "./pages/requests";
import { SettingsPage } from "./pages/settings";
import { TryPage, forgetTalk } from "./pages/try";
import { UsagePage } from "./pages/usage";
import { briefly } from "./format";
import { Problem, told } from "./parts/basics";
import { Icon } from "./parts/icon";
import { Link } from "./parts/link";
import { page, parts, visits } from "./route";
import { session } from "./session";
import { theme, turn } from "./theme";
import "./style.css";

const PAGES: Record<string, [string, ComponentType]> = {
  overview: ["Overview", OverviewPage],
  nodes: ["Nodes", NodesPage],
  requests: ["Requests", RequestsPage],
  models: ["Models", ModelsPage],
  keys: ["Keys", KeysPage],
  usage: ["Usage", UsagePage],
  try: ["Try it", TryPage],
  settings: ["Settings", SettingsPage],
};

const AGAIN_MS = 3000;

function begin(found: SignInView | null): void {
  session.value = found;
  if (!found) {
    forgetTalk();
    return stopFeed();
  }
  clockAhead.value = found.time - Date.now() / 1000;
  startFeed();
}

function Navigation() {
  const [now] = parts(page.value);
  const counts: Record<string, number> = { nodes: nodes.value.size, requests: requests.value.size };
  const bar = useRef<HTMLElement>(null);
  useEffect(() => {
    // On a phone the navigation is wider than the screen.
    bar.current?.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [page.value]);
  return (
    <nav aria-label="Pages" ref={bar}>
      {Object.entries(PAGES).map(([name, [title]]) => (
        <Link key={name} to={name} aria-current={now === name ? "page" : undefined}>
          <Icon name={name} />
          {title}
          {name in counts && <span class="count">{counts[name]}</span>}
        </Link>
      ))}
    </nav>
  );
}

function Frame() {
  const [name, about] = parts(page.value);
  const [title, Shown] = PAGES[name] ?? PAGES["overview"]!;
  useEffect(() => {
    document.title = `${about ? `${about} · ` : ""}${title} · wai`;
  }, [title, about]);
  const problem = useSignal("");
  const leave = async () => {
    problem.value = await told(signOut);
    if (!problem.value) begin(null); // on a problem the cookie is still valid, so don't show the sign-in
  };
  return (
    <div class="frame">
      <a class="skip" href="#content">Skip to content</a>
      <aside>
        <div class="brand">
          <img src="/dashboard/icon.svg" alt="" width="24" height="24" />
          <strong>wai</strong>
          <span class={connected.value ? "dot on" : "dot"} role="status" aria-label={connected.value ? "live" : "reconnecting"} title={connected.value ? "live" : "reconnecting"} />
        </div>
        <Navigation />
        <footer>
          <span class="who" title={`wai ${session.value?.version ?? ""}`}>{session.value?.name}</span>
          <button type="button" class="plain" onClick={turn} aria-label={`Theme: ${theme.value}`} title={`Theme: ${theme.value}`}>
            <Icon name={theme.value} />
          </button>
          <button type="button" class="plain" onClick={leave}>Sign out</button>
        </footer>
      </aside>
      <div class={connected.value ? undefined : "stale"}>
        {!connected.value && (
          <p class="problem banner" role="alert">
            The relay does not answer: what you see is of {briefly(heardAt.value)}. Trying again …
          </p>
        )}
        {problem.value && <div class="banner"><Problem text={`You are still signed in. ${problem.value}`} /></div>}
        <Shown key={visits.value} />
      </div>
    </div>
  );
}

let linkProblem = ""; // why the link by which the page was opened did not sign in

function SignInPage() {
  const token = useSignal("");
  const problem = useSignal(linkProblem);
  const submit = async (event: Event) => {
    event.preventDefault();
    problem.value = await told(async () => begin(await signIn(token.value.trim())));
  };
  return (
    <main class="sign-in">
      <form onSubmit={submit}>
        <img src="/dashboard/icon.svg" alt="" width="40" height="40" />
        <h1>Sign in to wai</h1>
        <label>
          Admin token
          <input type="password" autocomplete="current-password" autofocus required value={token} onInput={(event) => (token.value = event.currentTarget.value)} />
        </label>
        <button type="submit" class="primary">Sign in</button>
        <Problem text={problem.value} />
        <p class="hint">
          On the relay’s machine it is in the file <code>admin.token</code> of its data folder. Or run{" "}
          <code>wai sign-in link</code> there and open the link that it prints.
        </p>
      </form>
    </main>
  );
}

/** Whether the relay has not said yet who is signed in with this browser. */
const unknown = signal(false);

function Root() {
  if (session.value) return <Frame />;
  if (!unknown.value) return <SignInPage />;
  return <main class="sign-in"><p class="problem" role="alert">The relay does not answer. Trying again …</p></main>;
}

/** Ask until the relay says who is signed in: a relay that restarts has ended no sign-in. */
async function find(): Promise<void> {
  try {
    begin(await currentSession());
    unknown.value = false;
  } catch {
    unknown.value = true;
    setTimeout(find, AGAIN_MS);
  }
}

whenSignedOut(() => begin(null));
const link = new URLSearchParams(location.hash.slice(1)).get("sign-in");
if (link) history.replaceState(null, "", location.pathname); // a secret must not stay in the address bar
await find();
if (link && !session.value) linkProblem = await told(async () => begin(await signIn(link)));
render(<Root />, document.getElementById("app")!);
