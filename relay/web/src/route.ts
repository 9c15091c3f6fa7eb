// The current page: the path below /dashboard/, as "nodes" or "nodes/box".

import { signal } from "@preact/signals";

const base = "/dashboard/";
const read = () => location.pathname.slice(base.length) || "overview";

export const page = signal(read());
/** Grows when the address was changed by going back or forth, or by a link. */
export const visits = signal(0);
addEventListener("popstate", () => arrive());

export const href = (name: string) => base + (name === "overview" ? "" : name);

/** The page's name, and what it is about; "" for none. */
export function parts(path: string): [string, string] {
  const [name = "", ...rest] = path.split("/");
  const about = rest.join("/");
  try {
    return [name, decodeURIComponent(about)];
  } catch {
    return [name, about]; // an address that somebody typed
  }
}

/** The path of the page about a node. */
export const ofNode = (name: string) => `nodes/${encodeURIComponent(name)}`;

/** Whether the page was reached by a link; then it takes the focus. */
export let moved = false;

function arrive(): void {
  moved = true;
  page.value = read();
  visits.value++;
}

export function go(name: string): void {
  history.pushState(null, "", href(name));
  arrive();
  scrollTo(0, 0);
}

/** Put what a page shows into its address, so that the address can be kept and sent. */
export function remember(shown: Record<string, string>): void {
  const said = Object.entries(shown).filter(([name, value]) => value || name === "over");
  const query = new URLSearchParams(said).toString();
  history.replaceState(null, "", location.pathname + (query && `?${query}`));
}
