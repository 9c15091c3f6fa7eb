// The signed-in admin, and the relay's public URL.

import { signal } from "@preact/signals";
import type { SignInView } from "./generated/api";

export const session = signal<SignInView | null>(null);
/** The base URL for an OpenAI SDK; the address of this page certainly works. */
export const baseUrl = `${location.origin}/v1`;
