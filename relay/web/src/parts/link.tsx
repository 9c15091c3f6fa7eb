// A link to another page of the dashboard, which is followed without a reload.

import type { ComponentChildren } from "preact";
import { go, href } from "../route";

export function Link({ to, children, ...more }: { to: string; title?: string; "aria-current"?: "page" | undefined; children: ComponentChildren }) {
  const follow = (event: MouseEvent) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return; // into another tab
    event.preventDefault();
    go(to);
  };
  return <a {...more} href={href(to)} onClick={follow}>{children}</a>;
}
