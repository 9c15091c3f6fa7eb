// The current page: the path below /dashboard/.

import { signal } from "@preact/signals";

const base = "/dashboard/";
const read = () => location.pathname.slice(base.length) || "overview";

export const page = signal(read());
addEventListener("popstate", () => (page.value = read()));

export const href = (name: string) => base + (name === "overview" ? "" : name);

/** Whether the page was reached by a link; then it takes the focus. */
export let moved = false;
addEventListener("popstate", () => (moved = true));

export function go(name: string): void {
  moved = true;
  history.pushState(null, "", href(name));
  page.value = name;
  scrollTo(0, 0);
}

/** Put what a page shows into its address, so that the address can be kept and sent. */
export function remember(shown: Record<string, string>): void {
  const query = new URLSearchParams(shown).toString();
  history.replaceState(null, "", location.pathname + (query && `?${query}`));
}
