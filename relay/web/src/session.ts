// The signed-in admin, and the relay's public URL.

import { signal } from "@preact/signals";
import type { Session } from "./api";

export const session = signal<Session | null>(null);
/** The base URL for an OpenAI SDK; the address of this page certainly works. */
export const baseUrl = `${location.origin}/v1`;
